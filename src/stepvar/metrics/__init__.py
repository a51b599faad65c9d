"""Pure measures: fidelity, Fréchet distance, perceptual distance, statistics, timing, memory."""
