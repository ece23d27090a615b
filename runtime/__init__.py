"""Basics of all other parts: errors, registries, processes, signals, progress, random numbers."""
