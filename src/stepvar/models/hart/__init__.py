"""HART: text to image with a hybrid tokenizer and a diffusion head."""
