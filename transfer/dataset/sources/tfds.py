"""Datasets of TensorFlow Datasets: their encoded images, written into class folders.

TFDS reads in sequence, and shards need images in any order, so the images are written to a temporary folder first.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transfer.dataset.manifest import IGNORED, NO_LABEL, Reject
from transfer.dataset.splits import TRAIN, split_named
from transfer.errors import DatasetError
from transfer.runtime.distribution import install_extra
from transfer.runtime.parallel import run_in_process

logger = logging.getLogger(__name__)


def write_tfds(name: str, folder: Path, *, keep_splits: bool) -> tuple[dict[str, str], tuple[Reject, ...]]:
    """Write the TFDS dataset `name` as `<folder>/<class>/<split>-<number>`.

    Returns the folder of each split, as `FolderSource` takes them, and the images without a label. With `keep_splits`
    each split has its own folder of classes, `<folder>/train/<class>/…`; splits without a usual name go into train.
    Without it there are no folders of splits, and images are split like those of any source.

    TFDS needs TensorFlow, so it runs in a separate process. The data come from the folder of TFDS (TFDS_DATA_DIR), into
    which missing data are downloaded. Raises DatasetError.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise DatasetError(
            f"dataset.source is `tfds:{name}`, and tensorflow-datasets is not installed.",
            advice=install_extra("tfds"),
        )
    folders, left_out = run_in_process(partial(_write, name, keep_splits=keep_splits), folder)
    for split in left_out:
        if split.reason == IGNORED:
            logger.warning("The split `%s` is left out: %s.", split.key, split.detail)
    return folders, tuple(left_out)


def folders_of_splits(names: Iterable[str]) -> dict[str, str]:
    """The folder into which each split of TFDS is written, by the name of the split in TFDS.

    A split without a usual name (`extra`, `unsupervised`) is written into train. Raises DatasetError if no split
    becomes train.
    """
    folders = {name: split_named(name) or TRAIN for name in names}
    if TRAIN not in folders.values():
        raise DatasetError(
            f"dataset.tfds_splits is `keep`, and the splits there are {', '.join(sorted(folders))}: none to train on.",
            advice="Leave dataset.tfds_splits out; the images are then split by their content.",
        )
    return folders


def write_split(
    examples: Iterable[tuple[bytes, int]], *, split: str, names: Sequence[str], folder: Path
) -> Iterator[Reject]:
    """Write the examples of a split, encoded images with class indices, into class folders.

    Yields rejects: each image without a label (-1 in TFDS), or one line for a split without any label.
    """
    without_label = []
    number = -1
    for number, (image, label) in enumerate(examples):
        key = f"{split}-{number:08d}"
        if label < 0:
            without_label.append(Reject(key, NO_LABEL, "TFDS has no label for it (-1)"))
            continue
        # A slash in a class name would make a subfolder.
        path = folder / names[label].replace("/", "%2F") / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    if without_label and len(without_label) == number + 1:
        yield Reject(split, IGNORED, f"none of the {number + 1:,} images of this split has a label")
    else:
        yield from without_label


def _write(name: str, folder: Path, *, keep_splits: bool) -> tuple[dict[str, str], list[Reject]]:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise _no_dataset(name, tfds.list_builders(), error) from error
    image, label = _columns(tfds, builder.info, name)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise DatasetError(
            f"TFDS could not prepare `{name}`: {type(error).__name__}: {error}.",
            advice="Check the network, or prepare it yourself and set TFDS_DATA_DIR.",
        ) from error
    folders = folders_of_splits(builder.info.splits) if keep_splits else {}
    left_out: list[Reject] = []
    for split in sorted(builder.info.splits):
        found = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
        examples = ((example[image], int(example[label])) for example in found.as_numpy_iterator())
        into, names = folder / folders.get(split, ""), builder.info.features[label].names
        left_out += write_split(examples, split=split, names=names, folder=into)
    return {each: each for each in folders.values() if (folder / each).is_dir()}, left_out


def _no_dataset(name: str, known: Sequence[str], error: Exception) -> DatasetError:
    """The error for a name that TFDS refuses. The message of TFDS may list its whole catalog, so it is cut."""
    near = difflib.get_close_matches(name.partition("/")[0].partition(":")[0], known, n=3, cutoff=0.5)
    nearest = f" Near it: {', '.join(f'`{each}`' for each in near)}." if near else ""
    first_line = str(error).strip().partition("\n")[0][:200]
    return DatasetError(
        f"TFDS has no dataset `{name}`.{nearest} It says: {first_line}",
        advice="Its catalog lists the names.",
    )


def _columns(tfds: Any, info: Any, name: str) -> tuple[str, str]:
    """Names of a dataset's image and label features: the supervised keys, or the only features of these kinds."""
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    keys = info.supervised_keys
    if keys is not None and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        supervised = [info.features[key] for key in keys]
        # An image of segments is an Image to TFDS as well, but never the label.
        if all(isinstance(feature, kind) for feature, kind in zip(supervised, kinds, strict=True)):
            return keys[0], keys[1]
    found = [[key for key, feature in info.features.items() if isinstance(feature, kind)] for kind in kinds]
    if any(len(of_kind) != 1 for of_kind in found):
        raise DatasetError(
            f"TFDS's `{name}` has {len(found[0])} image and {len(found[1])} class label features, and its supervised "
            f"keys are {keys}. One image and one class label are needed.",
            advice="Choose a dataset for image classification, or write it out as class folders yourself.",
        )
    return found[0][0], found[1][0]
