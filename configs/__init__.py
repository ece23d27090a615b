"""One file for each published model, and their shared settings in `configs.families`."""
