"""Training of the embedded models: visual tokenizers, text encoders, transformers."""
