"""InfinityStar: text to video, image to video and continuation."""
