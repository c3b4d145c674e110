"""The machine: devices, processes, files, the console. Knows neither network nor diffusion."""
