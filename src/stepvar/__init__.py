"""stepvar: fast next-scale-prediction image generators."""

__version__ = "0.1.0"
