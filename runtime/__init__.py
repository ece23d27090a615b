"""What every part relies on: errors, registries, processes and signals, progress, random
numbers.
"""
