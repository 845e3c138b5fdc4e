"""The split of an image: given by the source, else by the name of its group, else by its own content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
NONE_GIVEN = -1

_WORDS = {
    TRAIN: ("train", "training", "trn"),
    VALIDATION: ("validation", "val", "valid", "dev"),
    TEST: ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}


def split_named(word: str) -> str | None:
    """The split with this usual name, whatever its case; None for any other word."""
    return _SPLIT_OF.get(word.strip().casefold())


def nearest_split(word: str) -> str | None:
    """The split with a usual name that is spelled nearly like this word; None if there is none."""
    nearest = get_close_matches(word.strip().casefold(), _SPLIT_OF, n=1)
    return _SPLIT_OF[nearest[0]] if nearest else None


@dataclass(frozen=True)
class Given:
    """Split and group of each image, as the source gives them."""

    splits: np.ndarray
    """int8 [n]: indices into SPLITS; NONE_GIVEN for an image without a given split."""
    groups: np.ndarray
    """int32 [n]: indices into `group_names`; NONE_GIVEN for an image without a group."""
    group_names: list[str]

    @property
    def split_names(self) -> set[str]:
        """Splits that are given to at least one image."""
        return {SPLITS[index] for index in np.unique(self.splits) if index != NONE_GIVEN}

    def part(self, rows: np.ndarray) -> Given:
        """Splits and groups of the images in those rows."""
        return Given(self.splits[rows], self.groups[rows], self.group_names)

    def group_hashes(self) -> np.ndarray:
        """The hash of each image's group, uint64 [n]; 0 for an image without one."""
        names = [*self.group_names, None]  # The index NONE_GIVEN means the last element.
        hashes: np.ndarray = group_hashes(names)[self.groups]
        return hashes


def nothing_given(images: int) -> Given:
    """Images without given splits and groups."""
    return Given(np.full(images, NONE_GIVEN, np.int8), np.full(images, NONE_GIVEN, np.int32), [])


def decide_splits(digest_heads: np.ndarray, given: Given, *, validation: float, test: float) -> np.ndarray:
    """Give each image its split: uint64 [n], the first 8 bytes of each SHA-256, to int8 [n], indices into SPLITS.

    A given validation or test split decides; if one image of a group has it, all images of the group do. From the
    others the shares `validation` and `test` are drawn, by the hash of the group, else of the image.
    """
    heads, has_group = digest_heads.copy(), given.groups != NONE_GIVEN
    heads[has_group] = given.group_hashes()[has_group]
    drawn = split_indices(heads, validation=validation, test=test)
    of_group = np.full(len(given.group_names), NONE_GIVEN, np.int8)
    np.maximum.at(of_group, given.groups[has_group], given.splits[has_group])
    decided = given.splits.copy()
    decided[has_group] = of_group[given.groups[has_group]]
    return np.where(decided > SPLITS.index(TRAIN), decided, drawn)


def split_indices(digest_heads: np.ndarray, *, validation: float, test: float) -> np.ndarray:
    """Give each hash its split: uint64 [n], the first 8 bytes of each SHA-256, to int8 [n], indices into SPLITS.

    The head is read as a number in [0, 1). Below `test` the split is test, below `test + validation` it is validation,
    else train. So a change of `validation` leaves the test split as it is.
    """
    places = digest_heads.astype(np.float64) / 2.0**64
    splits = np.full(len(places), SPLITS.index(TRAIN), np.int8)
    splits[places < test + validation] = SPLITS.index(VALIDATION)
    splits[places < test] = SPLITS.index(TEST)
    return splits


def group_hashes(names: Sequence[str | None]) -> np.ndarray:
    """The first 8 bytes of the SHA-256 of each name, uint64 [n]; 0 for None."""
    digests = b"".join(bytes(8) if name is None else hashlib.sha256(name.encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def group_in_two_splits(given: Given) -> tuple[int, int] | None:
    """Rows of two images of one group with different given splits; None if there are none."""
    rows = np.flatnonzero((given.groups != NONE_GIVEN) & (given.splits != NONE_GIVEN))
    rows = rows[np.argsort(given.groups[rows], kind="stable")]
    groups, splits = given.groups[rows], given.splits[rows]
    differs = np.flatnonzero((groups[1:] == groups[:-1]) & (splits[1:] != splits[:-1]))
    return (int(rows[differs[0]]), int(rows[differs[0] + 1])) if len(differs) else None


def drawn_never_trained_on(digests: Sequence[str], split: str, trained_with: Mapping[str, Any]) -> np.ndarray:
    """Whether a model held out each image of a split: bool [n]. The model's splits were drawn by content alone.

    `digests`: SHA-256 of each image. `trained_with`: section `dataset` of the model's configuration; its shares decide
    the split that an image had for the model. An image of the test split must have been in the model's test split, an
    image of the validation split in its validation or test split.
    """
    heads = np.frombuffer(bytes.fromhex("".join(digest[:16] for digest in digests)), ">u8").astype(np.uint64)
    splits = split_indices(heads, validation=trained_with["validation"], test=trained_with["test"])
    return splits >= SPLITS.index(split)
