"""Splits of small classes: where a class would lack a split by chance, one of its new images is placed in that split.

An image of the latest version is never placed anywhere else: models were trained without it, or on it. A version
records which images were placed, and they stay there in later versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from transfer.dataset.listing import as_words, find_words
from transfer.dataset.shards import Images, RecordedShard
from transfer.dataset.splits import SPLITS, TEST, TRAIN, VALIDATION

_SMALLEST_SHARE_IN_IMAGES = 0.5


def place_images(
    images: Images,
    drawn: np.ndarray,
    *,
    shares: Mapping[str, float],
    placed: Mapping[str, str],
    recorded: Sequence[RecordedShard],
) -> tuple[np.ndarray, dict[str, str]]:
    """The splits of all images, int8 [n], and the placed ones among them: `{sha256: split}`.

    A class should have a training image, and one in test and in validation where that split's share of its drawn
    images is half an image or more. Where it has none, the first of its new images by SHA-256 is placed there. A split
    gives up no last image of a class, unless it is the only one for training.

    `drawn` bool [n]: whose split in `images` was drawn by their own content. `shares` are those of each split in what
    is drawn. `placed` is what the latest version says of its own images, `recorded` its shards. An image that has left
    the source stays in the answer, since it may come back.
    """
    splits = images.splits.copy()
    placed = {digest: split for digest, split in placed.items() if shares[split] > 0}
    placed_words = as_words(bytes.fromhex("".join(placed)), 32)
    for place, split in zip(find_words(images.words, placed_words).tolist(), placed.values(), strict=True):
        if place >= 0 and drawn[place]:
            splits[place] = SPLITS.index(split)
    is_free = drawn.copy()
    for words in (placed_words, *(shard.words for shard in recorded)):
        places = find_words(images.words, words)
        is_free[places[places >= 0]] = False
    order = np.argsort(images.labels, kind="stable")
    for of_class in np.split(order, np.flatnonzero(np.diff(images.labels[order])) + 1):
        for split in (TRAIN, TEST, VALIDATION):
            counts = np.bincount(splits[of_class], minlength=len(SPLITS))
            share_in_images = shares[split] * np.count_nonzero(drawn[of_class])
            is_due = split == TRAIN or share_in_images >= _SMALLEST_SHARE_IN_IMAGES
            if counts[SPLITS.index(split)] or not is_due:
                continue
            gives = counts > (0 if split == TRAIN else 1)
            for place in of_class[is_free[of_class] & gives[splits[of_class]]][:1]:
                splits[place] = SPLITS.index(split)
                placed[images.words[place].astype(">u8").tobytes().hex()] = split
    return splits, placed
