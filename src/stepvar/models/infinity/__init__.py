"""Infinity: text to image by bitwise next-scale prediction."""
