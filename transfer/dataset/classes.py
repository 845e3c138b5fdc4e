"""Class names and their indices, and what is wrong with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from transfer.dataset.splits import SPLITS, TRAIN
from transfer.errors import DatasetError


def class_order(labels: Sequence[str], parent: Sequence[str], *, renames: Mapping[str, str], source: str) -> list[str]:
    """Order the classes: those of the parent version keep their index, new ones follow, sorted.

    `renames` gives those of the parent their new names; `labels` have theirs already. Raises DatasetError for fewer
    than two labels, for names that people would take for the same, and for classes of the parent that would become one.
    """
    if len(labels) == 1:
        raise DatasetError(
            f"There is only one class in {source}, `{labels[0]}`, and two are needed to tell apart.",
            advice="Put the images into one folder a class, and give the folder around those as dataset.source.",
        )
    known = _renamed(parent, renames)
    classes = [*known, *sorted(set(labels) - set(known))]
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(_folded(name), name)
        if twin != name:
            raise DatasetError(
                f"The classes `{twin}` and `{name}` differ only by case, space or Unicode form.",
                advice="Give them one name if they are one class (dataset.rename_classes does), else names that differ "
                "more. Names of earlier versions count: another dataset.name starts afresh.",
            )
    return classes


def _renamed(parent: Sequence[str], renames: Mapping[str, str]) -> list[str]:
    old_name_of: dict[str, str] = {}
    for old in parent:
        new = renames.get(old, old)
        twin = old_name_of.setdefault(new, old)
        if twin != old:
            raise DatasetError(
                f"dataset.rename_classes makes `{new}` of `{twin}` and of `{old}`, and both have an index already.",
                advice="Indices are never merged. Give the images of one the label of the other in the source, so that "
                "one class has no images any more; another dataset.name starts afresh.",
            )
    return list(old_name_of)


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def vanished_classes(counts: dict[str, dict[str, int]], known: Sequence[str]) -> list[str]:
    """Which of the classes of an earlier version have no images any more. `counts[split][class]` are images."""
    return [name for name in known if not any(counts[split][name] for split in SPLITS)]


def check_counts(
    counts: dict[str, dict[str, int]],
    classes: Sequence[str],
    *,
    vanished: Sequence[str],
    min_images: int,
    shares: dict[str, float],
) -> None:
    """Check that each class has `min_images` accepted images, and each split with a share above 0 any at all.

    Classes that vanished need none, but two classes must have training images. `counts[split][class]` are images.
    Raises DatasetError.
    """
    totals = {name: sum(counts[split][name] for split in SPLITS) for name in classes if name not in vanished}
    few = [f"`{name}` has {total}" for name, total in totals.items() if total < min_images]
    if few:
        raise DatasetError(
            f"{len(few)} of {len(classes)} classes have fewer than {min_images} accepted images, "
            f"dataset.min_images_per_class: {', '.join(few[:5])}{', …' if len(few) > 5 else ''}.",
            advice="Add images, or leave the class out of the source.",
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
    trained = [name for name in classes if counts[TRAIN][name]]
    if len(trained) < 2:
        raise DatasetError(
            f"Of the {len(classes)} classes only `{trained[0]}` has training images, and two are needed to tell apart.",
            advice="Add images of other classes, or lower dataset.validation and dataset.test.",
        )
