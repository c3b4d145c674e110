"""Where network and sampler meet: denoise functions, images of a seed, traces, grids."""
