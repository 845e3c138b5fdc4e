"""The frozen part of a network, run once an image, and its output cached by content."""
