"""The command line and what it runs: one file for each --mode, and the checks before it."""
