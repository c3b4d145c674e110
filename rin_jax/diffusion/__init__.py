"""The diffusion process: schedules, noise, loss, samplers. Knows no Flax, parameters or mesh."""
