"""Recurrent Interface Networks in JAX/Flax (arXiv 2212.11972)."""
