"""Training of the embedded models: VAEs, text encoders, transformers and the scene network.

`python -m stepvar.training --help` lists the commands.
"""
