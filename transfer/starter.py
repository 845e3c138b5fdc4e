"""A first configuration for some images: what `transfer init` writes."""

from __future__ import annotations

import io
import json
import os
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from transfer.config import DatasetConfig, StorageConfig
from transfer.config.paths import is_source_path, path_here
from transfer.dataset.classes import class_order
from transfer.dataset.listing import Listing, list_source
from transfer.dataset.manifest import Reject
from transfer.dataset.sources import Source, is_packed, open_source, unused_columns
from transfer.dataset.sources.base import key_of
from transfer.dataset.splits import SPLITS, TEST, TRAIN, VALIDATION
from transfer.errors import ConfigError, DatasetError
from transfer.preflight import check_source

_IMAGE_SIZES = (96, 128, 160, 192, 224)
"""Image sizes for which MobileNetV2 has weights."""
_NAMED = 20
_EXAMPLES = 20
_ELSEWHERE = "Give another file with --output, for example one beside the folder of the images."
# The header is at the beginning, perhaps after a thumbnail.
_HEADER_SIZE_BYTES = 1024**2
_FEW, _MANY = 1_000, 20_000
MOST_LISTED = 20_000


@dataclass(frozen=True)
class _Plan:
    """Settings for a number of images."""

    held_out: float
    batch_size: int
    phases: str
    augmentation: str = ""


_PLANS = {
    "few": _Plan(
        0.2,
        16,
        """\
  # Few images: only the head is trained, until validation stops improving.
  - {unfreeze: 0, epochs: 30, learning_rate: 1.0e-3, early_stopping: {patience_epochs: 5}}
  # With more images, or if these differ much from photos, train the last blocks after it:
  # - {unfreeze: 2, epochs: 5, learning_rate: 1.0e-5}
""",
        """
# The head sees 4 changed views of each training image. They go through the network once, as 4 times the images would.
# If a mirrored image has the same class (no text, no left and right), `flip: horizontal` may help, too.
augmentation: {rotation_degrees: 10, zoom: 0.1, brightness: 0.1, views: 4}
""",
    ),
    "some": _Plan(
        0.15,
        32,
        """\
  # The head first, then the last two blocks with it, at a small learning rate.
  - {unfreeze: 0, epochs: 10, learning_rate: 1.0e-3, early_stopping: {patience_epochs: 3}}
  - {unfreeze: 2, epochs: 5, learning_rate: 1.0e-5}
""",
    ),
    "many": _Plan(
        0.1,
        64,
        """\
  # The head first, then the last four blocks with it, at a small learning rate.
  - {unfreeze: 0, epochs: 3, learning_rate: 1.0e-3}
  - {unfreeze: 4, epochs: 5, learning_rate: 1.0e-4, schedule: {kind: cosine}}
""",
    ),
}


@dataclass(frozen=True)
class Starter:
    """A configuration as text, and its inputs. `name`: name of the job and its model, after the folder.

    `images`, `classes`: None for a source whose content is known only when a job reads it.
    """

    text: str
    name: str
    images: int | None
    classes: int | None


def write_starter(photos: str, output: Path) -> Starter:
    """Write a commented configuration for the images at `photos` to `output`.

    `photos`: any value of `dataset.source`. Raises ConfigError if `output` exists, cannot be written or would be among
    the images; DatasetError for a folder without class folders, and for a source that is missing.
    """
    if output.exists():
        raise ConfigError(f"{output} is there already.", advice=_ELSEWHERE)
    check_source(DatasetConfig(source=photos), StorageConfig(uri=photos))
    is_local = is_source_path(photos) and "://" not in photos
    starter = make_starter(photos, _relative(path_here(photos), output) if is_local else photos)
    try:
        # Do not replace a file that was created meanwhile, either.
        with output.open("x", encoding="utf-8") as file:
            file.write(starter.text)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}.", advice=_ELSEWHERE) from error
    return starter


def make_starter(
    photos: str, source: str, *, dataset: DatasetConfig | None = None, storage: StorageConfig | None = None
) -> Starter:
    """Make a configuration for the images at `photos`, in which their address is `source`.

    `dataset`: how the images are read. `storage`: how a bucket is reached. Raises DatasetError, ConfigError.
    """
    name = model_name(photos.removeprefix("tfds:"))
    if is_packed(photos) or not is_source_path(photos):
        return Starter(_text_without_a_look(source, name), name, None, None)
    dataset = dataset or DatasetConfig(source=photos)
    storage = storage or StorageConfig(uri=photos)
    with open_source(dataset, storage) as opened:
        found = list_source(opened, renames=dataset.rename_classes, most=MOST_LISTED)
        _check_classes(photos, found, may_be_splits=dataset.splits is not None)
        unused = unused_columns(opened)
        side = _usual_side(opened, found, unused.get("path_column", []))
    return Starter(_text(source, name, found, side, unused), name, len(found), len(found.labels))


def training_for(images: int) -> dict[str, Any]:
    """The sections `training` and `phases` for a number of images, as a document."""
    plan = _plan_for(images)
    return {"training": {"batch_size": plan.batch_size}, "phases": yaml.safe_load(plan.phases)}


def _plan_for(images: int) -> _Plan:
    return _PLANS["few" if images < _FEW else "some" if images < _MANY else "many"]


def _relative(photos: Path, output: Path) -> str:
    """The folder as a configuration in `output` names it: relative if it is below that folder, else absolute."""
    folder, config_folder = photos.resolve(), output.parent.resolve()
    if folder.is_dir() and config_folder.is_relative_to(folder):
        raise ConfigError(
            f"{output} would lie in the folder of the images, {photos}, where each folder is a class.",
            advice=_ELSEWHERE,
        )
    below = folder.is_relative_to(config_folder)
    return f"./{folder.relative_to(config_folder).as_posix()}" if below else str(folder)


def _check_classes(photos: str, found: Listing, *, may_be_splits: bool) -> None:
    if not len(found):
        what = ", ".join(f"`{name}`" for name in [*found.labels, *(reject.key for reject in found.rejects)][:5])
        raise DatasetError(
            f"There are no class folders with files in {photos}; found: {what or 'nothing'}.",
            advice="Put the images into one folder a class, PHOTOS/<class>/<image>.",
        )
    if found.is_whole:
        class_order(found.labels, [], source=photos, keys=found.image_keys(), may_be_splits=may_be_splits)


def _usual_side(source: Source, found: Listing, image_columns: Sequence[str]) -> int:
    """Median of the shorter sides of a few images, in pixels. Raises DatasetError if none of them can be read.

    `image_columns`: columns of images that a table has beside its paths.
    """
    _, first_of_class = np.unique(found.label_codes, return_index=True)
    asked = [found.key(row) for row in sorted(first_of_class.tolist())[:_EXAMPLES]]
    headers = (source.read(key, max_size_bytes=_HEADER_SIZE_BYTES) for key in asked)
    sides = [side for header in headers if not isinstance(header, Reject) and (side := _shorter_side(header))]
    if not sides:
        raise DatasetError(
            f"Of the first files of {len(asked)} classes none is an image; the first of them is {asked[0]}.",
            advice=_advice_for_a_table(image_columns)
            if source.description["kind"] == "table"
            else "Put images into the class folders: JPEG, PNG, GIF, BMP or WebP.",
        )
    return statistics.median_low(sides)


def _advice_for_a_table(image_columns: Sequence[str]) -> str:
    if not image_columns:
        return "The paths in a table start at its folder, and name images: JPEG, PNG, GIF, BMP or WebP."
    name = image_columns[0]
    return (
        f"The table has images in its column `{name}`. Take the column of paths out of it, or write a configuration: "
        f"`dataset: {{source: …, path_column: {name}}}`, `base: {{model: MobileNetV2}}`, a `name` and a `storage`."
    )


def _shorter_side(header: bytes) -> int | None:
    # Imported late, because `--help` needs no Pillow.
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return min(Image.open(io.BytesIO(header)).size)
    except Exception:  # noqa: BLE001 - broken files make Pillow's parsers raise anything
        return None


def _images_of(split: str, found: Listing, plan: _Plan) -> str:
    """Number of images that a split will have, in words."""
    given = found.given.splits
    if of_split := np.count_nonzero(given == SPLITS.index(split)):
        return f"{of_split:,} images that are given: this share is not used"
    return f"about {round(np.count_nonzero(given <= SPLITS.index(TRAIN)) * plan.held_out):,} images"


_NAME_AND_STORAGE = """\
# `transfer config check` says what a job would do with it. docs/configuration.md has every key.
# Relative paths begin in the folder of this file.

name: {name}  # of the job and of the model that it publishes, after the folder's name; any other does
storage: ./storage  # where datasets, runs and models are kept: a folder, or s3://BUCKET/PREFIX
"""
_NETWORK = """\
base:
  # Small and quick: MobileNetV2 (2.3 million parameters) or EfficientNetV2B0 (5.9). Often better, and several times
  # slower: ResNet50 (24), EfficientNetV2S (20), ConvNeXtTiny (28). `transfer inspect NETWORK` lists their blocks.
  model: MobileNetV2
"""
_COLUMNS = {
    "split_column": "the table has it; without it, splits are drawn",
    "group_column": "the table has it; without it, the images of a group may be in different splits",
    "path_column": "the table has images in it; without it, the files that its paths name are read",
}


def _text_without_a_look(source: str, name: str) -> str:
    return f"""\
# Made by `transfer init`. What is in the source is known only when a job reads it, so these are the usual settings.
{_NAME_AND_STORAGE.format(name=_scalar(name))}
dataset:
  source: {_scalar(source)}

{_NETWORK}
phases:
  # Only the head is trained. docs/config_check.md has settings by the number of images.
  - {{unfreeze: 0, epochs: 5, learning_rate: 1.0e-3}}
"""


def _text(source: str, name: str, found: Listing, side: int, unused: Mapping[str, Sequence[str]]) -> str:
    plan = _plan_for(len(found))
    image_size = next((size for size in _IMAGE_SIZES if size >= side), _IMAGE_SIZES[-1])
    or_more = "" if found.is_whole else " or more"
    columns = "".join(
        f"  # {key}: {_scalar(column)}  # {_COLUMNS[key]}\n" for key, names in unused.items() for column in names
    )
    return f"""\
# Made by `transfer init`. {len(found.labels):,} classes{or_more}, {len(found):,} files{or_more}:
{_class_lines(found)}
{_NAME_AND_STORAGE.format(name=_scalar(name))}
dataset:
  source: {_scalar(source)}
  validation: {plan.held_out}  # kept for choosing, {_images_of(VALIDATION, found, plan)}
  test: {plan.held_out}  # kept for the report, {_images_of(TEST, found, plan)}
{columns}
{_NETWORK}  image_size: {image_size}  # pixels; half of a few images have a shorter side of {side:,} or less

training:
  batch_size: {plan.batch_size}

phases:
{plan.phases}{plan.augmentation}"""


def _class_lines(found: Listing) -> str:
    counts = np.bincount(found.label_codes, minlength=len(found.labels))
    named = [f"{key_of(name)} {count:,}" for name, count in zip(found.labels, counts, strict=True)]
    more = [f"and {len(named) - _NAMED:,} more"] if len(named) > _NAMED else []
    return "\n".join(f"#   {line}" for line in [*named[:_NAMED], *more])


def model_name(photos: str) -> str:
    """A model name for some images: the name of their folder or file, with the characters that are allowed."""
    last = os.path.abspath(path_here(photos)) if "://" not in photos else photos.rstrip("/")  # noqa: PTH100
    words = re.findall(r"[A-Za-z0-9]+", last.rpartition("/")[2].removesuffix(".csv").removesuffix(".parquet"))
    return "-".join(words)[:100].lower() or "images"


def _scalar(value: str) -> str:
    """Write a text as a YAML scalar."""
    try:
        is_plain = yaml.safe_load(f"key: {value}  # comment") == {"key": value}
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False)
