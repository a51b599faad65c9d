"""Evaluation of models: scene score, benchmarks, comparison, calibration."""
