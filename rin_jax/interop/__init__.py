"""Weights to and from other implementations."""
