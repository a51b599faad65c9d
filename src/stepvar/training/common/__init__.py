"""Trainers and data handling that pictures, video and the scene network share."""
