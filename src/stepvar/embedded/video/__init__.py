"""The embedded video model: a small InfinityStar that draws moving scenes."""
