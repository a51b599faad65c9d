"""Training of the embedded video model."""
