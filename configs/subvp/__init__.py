"""Models of the sub-VP SDE."""
