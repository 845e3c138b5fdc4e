"""Metrics on held-out images, and the report that shows them."""
