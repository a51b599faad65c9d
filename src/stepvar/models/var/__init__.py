"""VAR: class to image."""
