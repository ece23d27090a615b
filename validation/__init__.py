"""Validation of checkpoints from end to end: the published ones, and yours."""
