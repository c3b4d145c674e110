"""Measures of samples. Knows neither the network nor the process."""
