"""Models of the VE SDE and of its discrete form, SMLD."""
