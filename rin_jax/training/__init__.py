"""Training: one step, its state, the optimizer, the averages, the loop."""
