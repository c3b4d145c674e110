"""Configurations on their way in and out: files, command lines, runs and exports."""

STORED = "config.json"  # in which a workdir or an export keeps its configuration
