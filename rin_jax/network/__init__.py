"""The network: tokens, attention, RIN blocks. Knows no schedule, noise, loss or mesh."""
