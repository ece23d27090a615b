"""What every part relies on: errors, registries, processes, signals, progress, random numbers."""
