"""Configurations on their way in and out: files, command lines, runs and exports."""
