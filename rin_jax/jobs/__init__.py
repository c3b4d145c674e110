"""The jobs of the command line: --mode=X is X.py. None imports another."""
