"""Datasets of TensorFlow Datasets: the encoded images as they are stored, written out into class folders.

TFDS reads in sequence, and shards are built from any image at any time, so the images go to a temporary folder first.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

from transfer.dataset.parallel import run_in_process
from transfer.errors import DatasetError


def write_tfds(name: str, folder: Path) -> None:
    """Write all splits of the TFDS dataset `name` as `<folder>/<class>/<split>-<number>`.

    Runs in a process of its own, since it needs TensorFlow. The data come from TFDS's own folder (TFDS_DATA_DIR) and
    are downloaded into it where they are not there yet. Raises DatasetError.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise DatasetError(
            f"dataset.source is `tfds:{name}`, and tensorflow-datasets is not installed.",
            advice="Install the extra: pip install 'transfer[tfds]'.",
        )
    run_in_process(partial(_write, name), folder)


def _write(name: str, folder: Path) -> None:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DatasetError(f"TFDS has no dataset `{name}`: {error}.", advice="Its catalog lists the names.") from error
    image, label = _columns(tfds, builder.info.features, name)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise DatasetError(
            f"TFDS could not prepare `{name}`: {type(error).__name__}: {error}.",
            advice="Check the network, or prepare it yourself and set TFDS_DATA_DIR.",
        ) from error
    names = builder.info.features[label].names
    for split in sorted(builder.info.splits):
        examples = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
        for number, example in enumerate(examples.as_numpy_iterator()):
            # A slash would make a folder of its own.
            path = folder / names[example[label]].replace("/", "%2F") / f"{split}-{number:08d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(example[image])


def _columns(tfds: Any, features: Any, name: str) -> tuple[str, str]:
    """Find the one image and the one class label among a dataset's features."""
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    found = [[key for key, feature in features.items() if isinstance(feature, kind)] for kind in kinds]
    if any(len(keys) != 1 for keys in found):
        raise DatasetError(
            f"TFDS's `{name}` has {len(found[0])} image and {len(found[1])} class label features, and one of each is "
            "needed.",
            advice="Choose a dataset for image classification, or write it out as class folders yourself.",
        )
    return found[0][0], found[1][0]
