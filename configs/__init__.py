"""The experiments, one file each; `released.py` is what those of the released recipe share."""
