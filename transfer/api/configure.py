"""From the arguments of a Python program to a checked configuration."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from transfer.config import Config, DatasetConfig, StorageConfig, load_document, parse_config, set_key
from transfer.config.explain import explain
from transfer.config.paths import anchor
from transfer.errors import ConfigError
from transfer.starter import make_starter

Source = str | os.PathLike[str] | Mapping[str, Any] | Config
"""A configuration (`Config`, mapping, path of a YAML file), or where the images are."""
EachPhase = int | float | str | Sequence[int | float | str]
"""A value for all phases, or one for each."""
Storage = str | os.PathLike[str] | Mapping[str, Any] | StorageConfig
"""A folder, `s3://bucket/prefix`, or the section `storage` of a configuration."""
Kind = TypeVar("Kind", bound=BaseModel)

_YAML = (".yaml", ".yml")
_HEAD_RATE, _BLOCKS_RATE = 1e-3, 1e-5


def configured(
    source: Source,
    changes: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    unfreeze: EachPhase | None = None,
    epochs: EachPhase | None = None,
    learning_rate: EachPhase | None = None,
    storage: Storage | None = None,
) -> Config:
    """Build the configuration of a job from a source and the arguments of `transfer.train`.

    Relative paths in a YAML file begin in the folder of that file, all others in the current folder.

    Args:
        source: `Config`, mapping, or path of a YAML file: the configuration. Any other path or address: the images, for
            which this function builds the configuration that `transfer init` writes.
        changes: Mapping from dotted keys to values, `{"training.batch_size": 16}`, applied last.
        model: String. The pretrained network, `base.model`.
        image_size: Integer. Side of the square that images are resized to, in pixels.
        unfreeze: Integer, `all`, name of a layer, or a list of them. Depth of each phase. It replaces all phases of the
            configuration.
        epochs: Integer or list of integers. Passes over the training images, for all phases or one for each.
        learning_rate: Float or list of floats. Peak learning rate, for all phases or one for each. Default for phases
            that `unfreeze` makes: 1e-3 for the head, 1e-5 for blocks.
        storage: Folder, `s3://bucket/prefix`, mapping or `StorageConfig`. It replaces the section `storage`.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The configuration is not valid; the message lists every problem.
        DatasetError: The source is a folder without class folders.
    """
    document = _document_of(source, changes or {}, storage)
    if storage is not None:
        document["storage"] = storage_config(storage).model_dump(mode="json")
    for key, value in (("base.model", model), ("base.image_size", image_size)):
        if value is not None:
            set_key(document, key, value, name=key)
    if unfreeze is not None:
        depths = _each(unfreeze)
        document["phases"] = [
            {"unfreeze": depth, "learning_rate": _HEAD_RATE if depth == 0 else _BLOCKS_RATE} for depth in depths
        ]
    _set_in_phases(document, "epochs", epochs)
    _set_in_phases(document, "learning_rate", learning_rate)
    for key, value in (changes or {}).items():
        set_key(document, key, value, name=f"changes[{key!r}]")
    anchor(document, Path.cwd())
    return parse_config(document)


def storage_config(storage: Storage) -> StorageConfig:
    """Build the section `storage` from its short forms.

    Args:
        storage: Folder, `s3://bucket/prefix`, mapping with the keys of the section, or `StorageConfig`.

    Returns:
        The section.

    Raises:
        ConfigError: The mapping has an unknown key or a value that is not valid.
    """
    if isinstance(storage, StorageConfig):
        return storage
    section = {"uri": os.fspath(storage)} if isinstance(storage, str | os.PathLike) else dict(storage)
    return _section(StorageConfig, section, name="storage")


def _document_of(source: Source, changes: Mapping[str, Any], storage: Storage | None) -> dict[str, Any]:
    if isinstance(source, Config):
        return source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"The source is a {type(source).__name__}.",
            advice="Give a Config, a mapping, the path of a YAML file, or where the images are.",
        )
    place = os.fspath(source)
    if place.endswith(_YAML):
        document = load_document(Path(place))
        anchor(document, Path(place).parent.resolve())
        return document
    # The keys `dataset.…` among the changes decide which images count.
    looked: dict[str, Any] = {"dataset": {"source": place}}
    for key, value in changes.items():
        if key.startswith("dataset."):
            set_key(looked, key, value, name=f"changes[{key!r}]")
    dataset = _section(DatasetConfig, looked["dataset"], name="dataset")
    reached = None if storage is None else storage_config(storage)
    found: dict[str, Any] = yaml.safe_load(make_starter(place, place, dataset=dataset, storage=reached).text)
    return found


def _section(kind: type[Kind], section: Mapping[str, Any], *, name: str) -> Kind:
    try:
        return kind.model_validate(section)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, name=name)) from None


def _set_in_phases(document: dict[str, Any], key: str, value: EachPhase | None) -> None:
    if value is None:
        return
    phases = document.setdefault("phases", [{}])
    values = _each(value)
    if len(values) == 1:
        values *= len(phases)
    if len(values) != len(phases):
        raise ConfigError(
            f"{key} has {len(values)} values; expected 1 or as many as there are phases: {len(phases)}.",
            advice="`unfreeze` says which phases there are: `unfreeze=[0, 2]` makes two.",
        )
    for phase, each in zip(phases, values, strict=True):
        phase[key] = each


def _each(value: EachPhase) -> list[int | float | str]:
    return [value] if isinstance(value, int | float | str) else list(value)
