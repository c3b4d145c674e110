"""What is saved of a run, how damage is noticed, and what is restored."""
