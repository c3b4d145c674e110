"""Configurations on their way in and out: files, command lines, runs and exports."""

from pathlib import Path

STORED = "config.json"  # in which a workdir or an export keeps its configuration
CONFIGS = Path(__file__).parents[2] / "configs"  # lies beside rin_jax/, installed or not
