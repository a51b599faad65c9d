"""Pruning methods: StepVAR and its rivals, scores, recoveries and presets. Knows no model."""
