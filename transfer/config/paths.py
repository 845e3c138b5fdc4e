"""Paths in a configuration: which values are paths, and how they are resolved on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer.errors import ConfigError

_FILE_OF_A_MODEL = (".keras", ".h5", ".hdf5", ".tar.gz", ".tgz")
_SQLITE = "sqlite:///"
PRESET_PREFIX = "hub:"
"""`base.model: hub:NAME` is the preset NAME of keras-hub."""


def path_here(text: str | Path) -> Path:
    """Expand `~` to the home of the current user, and `~name` to the home of that user.

    Raises ConfigError if there is no such home: the user is unknown, or has no home, as in some containers.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{str(text)!r} begins with a home folder that this machine does not have.",
            advice="Write the whole path, or set HOME.",
        ) from None


def is_model_file(model: str) -> bool:
    """Whether `base.model` is a path or an address: it contains a `/` or ends like a model file.

    Otherwise it names a Keras network, even if a folder or file with that name exists.
    """
    return not model.startswith(PRESET_PREFIX) and ("/" in model or model.endswith(_FILE_OF_A_MODEL))


def brings_weights(model: str) -> bool:
    """Whether `base.model` comes with weights of its own, which the default of `base.weights` does not name."""
    return is_model_file(model) or model.startswith(PRESET_PREFIX)


def is_source_path(source: str) -> bool:
    """Whether `dataset.source` is a path or an address, not the name of a dataset."""
    return source != "digits" and not source.startswith("tfds:")


_IS_PATH: dict[str, Callable[[str], bool]] = {
    "storage.uri": bool,
    # `~` stays, because each machine expands it to its own home.
    "storage.cache_folder": lambda folder: not folder.startswith("~"),
    "dataset.source": is_source_path,
    "base.model": is_model_file,
    "base.weights": lambda weights: weights not in {"imagenet", "none"},
    "publish.classes": bool,
    "sweep.mlflow": lambda uri: "/" in uri,
}
"""The keys whose values can be paths, each with a test whether a value is one."""


def anchor(document: dict[str, Any], folder: Path) -> None:
    """Make relative paths in a configuration's document absolute, in place; they start at `folder` (absolute).

    Values of a wrong type do not change; validation by the models reports them.
    """
    if isinstance(document.get("storage"), str):
        document["storage"] = {"uri": document["storage"]}
    for name, section in document.items():
        if isinstance(section, dict):
            _anchor_section(name, section, folder)
    sweep = document.get("sweep")
    space = sweep.get("space") if isinstance(sweep, dict) else None
    if isinstance(space, dict):
        for key, domain in space.items():
            _anchor_choices(key, domain, folder)


def _anchor_section(name: str, section: dict[str, Any], folder: Path) -> None:
    for key, value in section.items():
        section[key] = _anchored(f"{name}.{key}", value, folder)


def _anchor_choices(key: str, domain: Any, folder: Path) -> None:
    choices = domain.get("choices") if isinstance(domain, dict) else domain
    if not isinstance(choices, list):
        return
    for index, choice in enumerate(choices):
        if isinstance(choice, dict):
            _anchor_section(key, choice, folder)
        else:
            choices[index] = _anchored(key, choice, folder)


def _anchored(key: str, value: Any, folder: Path) -> Any:
    is_path = _IS_PATH.get(key)
    if is_path is None or not isinstance(value, str) or not value.strip() or not is_path(value):
        return value
    scheme = _SQLITE if value.startswith(_SQLITE) else ""
    path = os.path.expanduser(value.removeprefix(scheme))  # noqa: PTH111 - it leaves a home that is not there
    if "://" in path or path.startswith("~"):
        return value
    return scheme + os.path.normpath(folder / path)
