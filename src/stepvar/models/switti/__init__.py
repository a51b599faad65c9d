"""Switti: text to image without causal attention between scales."""
