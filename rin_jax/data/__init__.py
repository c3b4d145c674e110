"""Data: images and clips read by TFDS, ordered by grain, as batches of uint8 arrays.

Nothing here imports the rest of rin_jax but its ConfigError, nor TensorFlow.
"""
