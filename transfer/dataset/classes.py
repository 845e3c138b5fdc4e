"""Class names and their indices, and what is wrong with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from transfer.dataset.splits import SPLITS
from transfer.errors import DatasetError


def class_order(labels: Sequence[str], parent: Sequence[str], *, source: str) -> list[str]:
    """Order the classes: those of the parent version keep their index, new ones follow, sorted.

    Raises DatasetError for fewer than two labels, and for names that people would take for the same.
    """
    if len(labels) == 1:
        raise DatasetError(
            f"There is only one class in {source}, `{labels[0]}`, and two are needed to tell apart.",
            advice="Put the images into one folder a class, and give the folder around those as dataset.source.",
        )
    classes = [*parent, *sorted(set(labels) - set(parent))]
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(_folded(name), name)
        if twin != name:
            raise DatasetError(
                f"The classes `{twin}` and `{name}` differ only by case, space or Unicode form.",
                advice="Give them one name if they are one class, else names that differ more. Names of earlier "
                "versions count: another dataset.name starts afresh.",
            )
    return classes


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def check_counts(
    counts: dict[str, dict[str, int]], classes: Sequence[str], *, min_images: int, shares: dict[str, float]
) -> None:
    """Check that each class has `min_images` accepted images, and each split with a share above 0 any at all.

    `counts[split][class]` are images. Raises DatasetError.
    """
    totals = {name: sum(counts[split][name] for split in SPLITS) for name in classes}
    few = [f"`{name}` has {total}" for name, total in totals.items() if total < min_images]
    if few:
        raise DatasetError(
            f"{len(few)} of {len(classes)} classes have fewer than {min_images} accepted images, "
            f"dataset.min_images_per_class: {', '.join(few[:5])}{', …' if len(few) > 5 else ''}.",
            advice="Add images, or leave the class out of the source; a class of an earlier version can only be left "
            "out under another dataset.name.",
        )
    for split, share in shares.items():
        if share > 0 and not sum(counts[split].values()):
            raise DatasetError(
                f"The {split} split is empty: its share is {share:g}, and none of the {sum(totals.values())} images "
                "falls into it.",
                advice=f"Add images, or change the shares; dataset.{split}: 0 does without it."
                if split != "train"
                else "Add images, or lower dataset.validation and dataset.test.",
            )
