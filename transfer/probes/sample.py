"""A part of a split that stands for all of it: the same rows for the same images, whatever the number of processes."""

from __future__ import annotations

import numpy as np


def stratified_rows(labels: np.ndarray, digests: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows in which each class has its share, the first rows of it first. Returns int64 [m].

    `labels`: int [n]. `digests`: uint64 [n], of the images. They decide which rows of a class are taken, so images that
    a later dataset version adds change the sample little. The first m rows of the answer are the answer for `most` = m:
    a smaller sample is part of a larger one.
    """
    order = np.lexsort((digests, labels))
    counts = np.unique(labels, return_counts=True)[1]
    rank = np.concatenate([np.arange(count) / count for count in counts]) if len(counts) else np.empty(0)
    return np.asarray(order[np.lexsort((digests[order], rank))][:most], np.int64)
