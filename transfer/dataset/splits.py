"""Which split an image belongs to, decided by its own content alone."""

from __future__ import annotations

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


def split_indices(digest_heads: np.ndarray, *, validation: float, test: float) -> np.ndarray:
    """Give each image its split: uint64 [n], the first 8 bytes of each SHA-256, to int8 [n], indices into SPLITS.

    The head, as a number in [0, 1), is below `test`: test; below `test + validation`: validation; else train. So
    another share of validation leaves the test split as it is.
    """
    places = digest_heads.astype(np.float64) / 2.0**64
    splits = np.full(len(places), SPLITS.index(TRAIN), np.int8)
    splits[places < test + validation] = SPLITS.index(VALIDATION)
    splits[places < test] = SPLITS.index(TEST)
    return splits
