"""What samples are conditioned on: measurements, guidance, latent codes."""
