"""Models of the VP SDE and of its discrete form, DDPM."""
