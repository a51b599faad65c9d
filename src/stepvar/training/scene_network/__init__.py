"""Training of the network that scores scenes."""
