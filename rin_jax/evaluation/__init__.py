"""Measures of samples: how many are drawn, a classifier's view of them, distances of its features.

Nothing here knows the network, the process or where the images come from.
"""
