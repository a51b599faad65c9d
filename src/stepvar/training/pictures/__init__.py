"""Training of the embedded picture model."""
