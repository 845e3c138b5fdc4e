"""Dataset versions made by hand: which image is in which shard, with which class."""

from __future__ import annotations

import hashlib

from tests.published import first_version
from transfer.dataset.shards import write_shard

SPLITS = ("train", "validation", "test")


def images(label, *numbers):
    """Images of a class, told apart by their numbers."""
    return [(number, label) for number in numbers]


def dataset_of(store, classes, shards, *, name="pets", number=1, rejects=None):
    """A version with these shards, each a split and its images."""
    counts = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    written = []
    for split, content in shards:
        for _, label in content:
            counts[split][classes[label]] += 1
        rows = [
            {
                "key": f"{image}.png",
                "image": str(image).encode(),
                "label": label,
                "sha256": hashlib.sha256(str(image).encode()).hexdigest(),
                "width": 1,
                "height": 1,
            }
            for image, label in content
        ]
        written.append(write_shard(store, sorted(rows, key=lambda row: row["sha256"]), split=split))
    return first_version(name, classes, number=number, shards=written, counts=counts, reject_counts=rejects or {})
