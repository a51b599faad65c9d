"""How good and how fast: fidelity of pictures, scores of scenes, times that can be compared."""
