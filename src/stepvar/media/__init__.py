"""Media files: reading of pictures and videos, encoding of PNG, MP4 and GIF."""
