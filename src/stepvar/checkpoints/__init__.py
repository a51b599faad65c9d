"""Reading of weight files, strict key maps and conversion; nothing in a file is executed."""
