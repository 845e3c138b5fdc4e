"""Jobs on a Ray cluster: shipping the working tree, and repeatable submission."""
