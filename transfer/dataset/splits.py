"""Which split an image belongs to: the given one, else by its group's name, else by its own content."""

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
    """The split that people call by that word, whatever its case; None where it is no usual one."""
    return _SPLIT_OF.get(word.strip().casefold())


def nearest_split(word: str) -> str | None:
    """The split with a usual name that is spelled nearly like this word; None where none is."""
    nearest = get_close_matches(word.strip().casefold(), _SPLIT_OF, n=1)
    return _SPLIT_OF[nearest[0]] if nearest else None


@dataclass(frozen=True)
class Given:
    """What a source says of each of its images besides the class."""

    splits: np.ndarray
    """int8 [n], indices into SPLITS, NONE_GIVEN where it gives none."""
    groups: np.ndarray
    """int32 [n], indices into `group_names`, NONE_GIVEN for an image without a group."""
    group_names: list[str]

    @property
    def split_names(self) -> set[str]:
        """Splits that are given to at least one image."""
        return {SPLITS[index] for index in np.unique(self.splits) if index != NONE_GIVEN}

    def part(self, rows: np.ndarray) -> Given:
        """The same of some images only."""
        return Given(self.splits[rows], self.groups[rows], self.group_names)

    def group_hashes(self) -> np.ndarray:
        """The hash of each image's group, uint64 [n]; 0 for an image without one."""
        names = [*self.group_names, None]  # NONE_GIVEN is the last one.
        hashes: np.ndarray = group_hashes(names)[self.groups]
        return hashes


def nothing_given(images: int) -> Given:
    """So many images of which a source gives neither split nor group."""
    return Given(np.full(images, NONE_GIVEN, np.int8), np.full(images, NONE_GIVEN, np.int32), [])


def decide_splits(digest_heads: np.ndarray, given: Given, *, validation: float, test: float) -> np.ndarray:
    """Give each image its split: uint64 [n], the first 8 bytes of each SHA-256, to int8 [n], indices into SPLITS.

    Where validation or test is given, that decides; for all images of a group where it is given to one of them. Of the
    others `validation` and `test` are the shares that are drawn: by the hash of the group, else of the image.
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

    The head, as a number in [0, 1), is below `test`: test; below `test + validation`: validation; else train. So
    another share of validation leaves the test split as it is.
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
    """Two images of one group that are given different splits, by their rows; None where there are none."""
    rows = np.flatnonzero((given.groups != NONE_GIVEN) & (given.splits != NONE_GIVEN))
    rows = rows[np.argsort(given.groups[rows], kind="stable")]
    groups, splits = given.groups[rows], given.splits[rows]
    differs = np.flatnonzero((groups[1:] == groups[:-1]) & (splits[1:] != splits[:-1]))
    return (int(rows[differs[0]]), int(rows[differs[0] + 1])) if len(differs) else None


def drawn_never_trained_on(digests: Sequence[str], split: str, trained_with: Mapping[str, Any]) -> np.ndarray:
    """Whether a model kept each image of a split at least as far from its training: bool [n].

    Its own splits were drawn by the images' content alone. An image's split follows from its SHA-256 in `digests` and
    the shares of the model's own configuration, its section `dataset`. Of the test split, what the model had in its
    test split counts; of the validation split, that and what it had in its validation split.
    """
    heads = np.frombuffer(bytes.fromhex("".join(digest[:16] for digest in digests)), ">u8").astype(np.uint64)
    splits = split_indices(heads, validation=trained_with["validation"], test=trained_with["test"])
    return splits >= SPLITS.index(split)
