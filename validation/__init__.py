"""Whether checkpoints work from end to end: the published ones, and yours."""
