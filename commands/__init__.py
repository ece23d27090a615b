"""The command line: one file for each --mode, and the checks that run first."""
