"""Jobs on a Ray cluster: the working tree as it is shipped, and a submission that may be repeated."""
