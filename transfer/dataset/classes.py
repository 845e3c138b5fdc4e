"""Class names and their indices, and the checks of both."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from transfer.dataset.splits import SPLITS, TRAIN, split_named
from transfer.errors import DatasetError


def places_among(
    classes: Sequence[str], others: Sequence[str], *, same_indices: bool, renames: Mapping[str, str]
) -> list[int | None]:
    """The index among `others` of each of `classes`, which are those of an earlier version or of a model.

    None for a class that is not among `others`. A renamed class is the same class; two classes that were merged have
    one index. `same_indices`: both are classes of versions between which no index moved, although names may have
    changed (`Dataset.has_indices_of`). Otherwise names decide, after `renames`: `{old: new}`, dataset.rename_classes.
    """
    if same_indices:
        return [index if index < len(others) else None for index in range(len(classes))]
    indices = {name: index for index, name in enumerate(others)}
    return [indices.get(renames.get(name, name)) for name in classes]


def names_among(
    classes: Sequence[str], others: Sequence[str], *, same_indices: bool, renames: Mapping[str, str]
) -> list[str]:
    """The name of each of `classes` among `others`; its own name if it is not among them.

    Arguments: as for `places_among`. If `renames` has the own name, its new name is returned.
    """
    places = places_among(classes, others, same_indices=same_indices, renames=renames)
    own = classes if same_indices else [renames.get(name, name) for name in classes]
    return [name if place is None else others[place] for name, place in zip(own, places, strict=True)]


_SHOWN = 12


def no_classes(source: str, *, beside: str) -> DatasetError:
    """The error for a source without any class. `beside`: what else the source contains, in words."""
    return DatasetError(
        f"There are no images with a class in {source}{f'; {beside}' if beside else ''}.",
        advice="Put the images into one folder a class, <source>/<class>/<image>; in a table fill its labels.",
    )


def class_order(
    labels: Sequence[str], known: Sequence[str], *, source: str, keys: Iterable[str] = (), may_be_splits: bool = False
) -> list[str]:
    """Order the classes: the `known` classes of the parent version first, in its order, then new classes, sorted.

    `keys`: those of the images; from them the error for names of splits tells why the folders are not splits. Raises
    DatasetError for fewer than two labels, for names of splits (unless `may_be_splits`), if no known class is among the
    labels, and for names that people would take for the same.
    """
    splits = {} if may_be_splits else {name: split for name in labels if (split := split_named(name))}
    # A single class may be called `train` or `test`.
    if splits and (len(splits) == len(labels) or (TRAIN in splits.values() and len({*splits.values()}) > 1)):
        folders = ", ".join(f"`{name}`" for name in splits)
        others = [name for name in labels if name not in splits]
        beside = f" (beside {named(others)})" if others else ""
        raise DatasetError(
            f"The folders in {source} are {folders}{beside}: splits, and no classes.{_uneven(splits, keys)}",
            advice="Give each of them the same class folders. Or where class folders are in them, name them in "
            "dataset.splits, `{train: train, …}`; or one of them in dataset.subfolder; `dataset.splits: {}` takes them "
            "as classes.",
        )
    if len(labels) == 1:
        raise DatasetError(
            f"There is only one class in {source}, `{labels[0]}`, and two are needed to tell apart.",
            advice="Put the images into one folder a class, and give the folder around those as dataset.source.",
        )
    if known and labels and set(known).isdisjoint(labels):
        raise DatasetError(
            f"The dataset has {len(known)} classes so far ({named(known)}), and none of them is in {source}, whose "
            f"classes are {named(labels)}. A dataset's classes stay: a model of both would be trained.",
            advice="If these are other images, set `name` to a new name. If classes were renamed, say so in "
            "dataset.rename_classes. `transfer datasets start-over` forgets the earlier ones.",
        )
    classes = [*known, *sorted(set(labels) - set(known))]
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(_folded(name), name)
        if twin != name:
            raise DatasetError(
                f"The classes `{twin}` and `{name}` differ only by case, space or Unicode form.",
                advice="Give them one name if they are one class (dataset.rename_classes does), else names that differ "
                "more. Names of earlier versions count: `transfer datasets start-over` forgets them.",
            )
    return classes


def _uneven(splits: Collection[str], keys: Iterable[str]) -> str:
    """The sentence on a class folder that some folders of splits have and others lack; empty if there is none."""
    folders_of: dict[str, set[str]] = {}
    for key in keys:
        folder, _, inside = key.partition("/")
        if folder in splits and "/" in inside:
            folders_of.setdefault(inside.partition("/")[0], set()).add(folder)
    everywhere = set[str]().union(*folders_of.values())
    for name, folders in sorted(folders_of.items()):
        if folders != everywhere:
            lacking = named(sorted(everywhere - folders))
            return f" The class folder `{name}` is only in {named(sorted(folders))}, not in {lacking}."
    return ""


def renamed(parent: Sequence[str], renames: Mapping[str, str]) -> list[str]:
    """The classes of an earlier version by their new names. Raises DatasetError if two classes would become one."""
    old_name_of: dict[str, str] = {}
    for old in parent:
        new = renames.get(old, old)
        twin = old_name_of.setdefault(new, old)
        if twin != old:
            raise DatasetError(
                f"dataset.rename_classes makes `{new}` of `{twin}` and of `{old}`, and both have an index already.",
                advice="Indices are never merged. Give the images of one the label of the other in the source, so that "
                "one class has no images any more; `transfer datasets start-over` gives all classes new indices.",
            )
    return list(old_name_of)


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def vanished_classes(counts: dict[str, dict[str, int]], known: Sequence[str]) -> list[str]:
    """Classes of an earlier version that lost all of their images. `counts[split][class]`: number of images."""
    return [name for name in known if not any(counts[split][name] for split in SPLITS)]


def check_counts(
    counts: dict[str, dict[str, int]],
    classes: Sequence[str],
    *,
    vanished: Sequence[str],
    min_images: int,
    shares: Mapping[str, float],
    given: Collection[str] = (),
    groups_by: str | None = None,
) -> None:
    """Check that each class has `min_images` accepted images, and that no wanted split is empty. Raises DatasetError.

    A split is wanted if its share in `shares` is above 0, or if it is among the `given` splits. Vanished classes need
    no images, but two classes must have training images. `counts[split][class]`: number of images. `groups_by`: the
    column or pattern of groups that share a split.
    """
    totals = {name: sum(counts[split][name] for split in SPLITS) for name in classes if name not in vanished}
    few = [f"`{name}` has {total}" for name, total in totals.items() if total < min_images]
    if few:
        raise DatasetError(
            f"{len(few)} of {len(classes)} classes have fewer than {min_images} accepted images, "
            f"dataset.min_images_per_class: {', '.join(few[:5])}{', …' if len(few) > 5 else ''}.",
            advice="Add images, or leave the class out of the source.",
        )
    for split in given:
        if not sum(counts[split].values()):
            raise DatasetError(
                f"The {split} split is empty: the source gives it, and none of the {sum(totals.values())} images that "
                "are accepted is in it.",
                advice="Add images to it, or leave it out of what the source gives: then it is drawn from train.",
            )
    for split, share in shares.items():
        if share > 0 and not sum(counts[split].values()):
            raise DatasetError(
                f"The {split} split is empty: its share is {share:g}, and none of the {sum(totals.values())} images "
                f"falls into it{f': all of a group share one ({groups_by})' if groups_by else ''}.",
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


def check_given(images: Mapping[str, Sequence[int]]) -> None:
    """Raise DatasetError if the source puts all images of a class into validation or test.

    `images`: by class, the number of images that are given to train, validation and test, and to no split.
    """
    untrained = [name for name, (train, *held_out, free) in images.items() if any(held_out) and not train + free]
    if untrained:
        name = untrained[0]
        counts = zip(SPLITS, images[name], strict=False)
        found = " and ".join(f"{count:,} in {split}" for split, count in counts if count)
        more = f"; so are all of {named(untrained[1:])}" if untrained[1:] else ""
        raise DatasetError(
            f"All images of the class `{name}` are given to splits that no model is trained on, {found}{more}.",
            advice="Give some images of each class to train, or take the class out of the source.",
        )


def warnings_of(
    counts: Mapping[str, Mapping[str, int]], classes: Sequence[str], *, vanished: Sequence[str]
) -> Iterator[str]:
    """Warn of classes without images in a split that has images. `counts[split][class]`: number of images."""
    if vanished:
        yield f"Without images now, with their indices kept: {named(vanished)}."
    for split in SPLITS:
        lacking = [name for name in classes if not counts[split][name] and name not in vanished]
        if not lacking or not any(counts[split].values()):
            continue
        if split == TRAIN:
            lost = "Without training images, so no model answers them"
            yield f"{lost}: {named(lacking)}. All of their images are held out."
        else:
            yield f"Without {split} images, so the figures on that split say nothing of them: {named(lacking)}."


def named(names: Sequence[str]) -> str:
    """The first of these names, and how many there are."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown}, and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown
