"""Editing without new weights: masks at every scale, known tokens, pictures in and out; knows no model."""
