"""End-to-end validation of checkpoints, published ones or your own."""
