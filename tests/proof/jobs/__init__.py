"""A package, so that a cluster can be of its tests alone."""
