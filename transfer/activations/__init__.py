"""The frozen part of a network run once per image, and its output kept by content."""
