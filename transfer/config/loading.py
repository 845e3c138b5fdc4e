"""From a YAML file and `--set` overrides to a checked Config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from transfer.config.models import Config
from transfer.config.paths import anchor, is_model_file
from transfer.errors import ConfigError

# Some fifty screens. PyYAML takes a second for so much.
MAX_FILE_SIZE_BYTES = 128 * 1024
_LARGEST_NUMBER = 2**63 - 1
# What PyYAML's constructors raise for scalars that are not of their tag: `!!bool x`, `2001-99-99`, a million digits.
_UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError, OverflowError)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses repeated keys and aliases: the former hide mistakes, the latter make bombs."""

    # YAML 1.1 reads `off` and `on`, which no other words with an `o` are, as false and true. `off` is a choice of some
    # keys; those that are true or false take both words as texts, too.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the parent
        first: found for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items() if first not in {"o", "O"}
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` stands twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_config(path: str | Path, overrides: Sequence[str] = (), *, folder: Path | None = None) -> Config:
    """Read and check a configuration file.

    Args:
        path: Path of a YAML file in UTF-8, at most 128 KiB. Relative paths in it begin in the folder of this file.
        overrides: Sequence of strings `dotted.key=value`, the value in YAML: `phases.0.epochs=3`.
        folder: Path. Folder in which relative paths of overrides begin. Default: the current folder.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The file cannot be read or is not valid. The message lists every problem, and the nearest known
            name for an unknown key.

    Example:
        >>> config = transfer.load_config("flowers.yaml", ["phases.0.epochs=3"])
        >>> config.phases[0].epochs
        3
    """
    path = Path(path)
    document = _read(path)
    anchor(document, path.parent.resolve())
    if overrides:
        _apply_all(document, overrides)
        # Paths that are still relative come from overrides.
        anchor(document, folder or Path.cwd())
    return parse_config(document, name=str(path))


def config_of_network(network: str, overrides: Sequence[str] = (), *, storage: Path) -> Config:
    """The configuration of a pretrained classifier that is used as it is.

    A network by name sees images as networks of ImageNet are tested: 7/8 of the largest square.

    Args:
        network: String. `base.model`.
        overrides: Sequence of strings `dotted.key=value`, the value in YAML.
        storage: Path of the folder where it is published.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: An override is not valid.
    """
    tested = {} if is_model_file(network) else {"fit": "crop", "crop_share": 0.875}
    document: dict[str, Any] = {
        "name": re.sub("[^A-Za-z0-9]+", "-", network).strip("-")[-100:].strip("-") or "network",
        "storage": {"uri": str(storage)},
        # Nothing is ingested: images are given to be predicted.
        "dataset": {"source": "digits"},
        "base": {"model": network, **tested},
        "publish": {"promote": "never"},
    }
    _apply_all(document, overrides)
    anchor(document, Path.cwd())
    return parse_config(document, name="--model")


def load_document(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a configuration file without checking it; relative paths stay as they were written.

    Args:
        path: Path of a YAML file in UTF-8, at most 128 KiB.
        overrides: Sequence of strings `dotted.key=value`, the value in YAML.

    Returns:
        The document, of JSON's own types.

    Raises:
        ConfigError: The file cannot be read, or an override names a place that does not exist.
    """
    document = _read(path)
    _apply_all(document, overrides)
    return document


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, and a configuration is a YAML file.",
            advice=f"For a folder of images `transfer init {path}` writes one.",
        )
    try:
        if path.stat().st_size > MAX_FILE_SIZE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_SIZE_BYTES} bytes, too large for a configuration.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.", advice="Give the path of a YAML configuration.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", advice="Give a UTF-8 YAML file.") from error
    document = _parse(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path} holds {type(document).__name__}, expected keys and values.", advice="See docs/configuration.md."
        )
    return document


def parse_config(document: Mapping[str, Any], *, name: str = "This") -> Config:
    """Check a document.

    Args:
        document: Mapping of JSON's own types. Its relative paths begin in the current folder.
        name: String. Name of the document in messages, for example the path of its file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The document is not valid; the message lists every problem.
    """
    return Config.model_validate(document, context={"name": name})


def _parse(text: str, name: str) -> Any:
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
        _check_plain(document)
    except _UNREADABLE as error:
        raise ConfigError(f"{name} is not readable as YAML: {error}") from None
    return document


def _check_plain(value: Any) -> None:
    """Raise ValueError for values that YAML has and JSON lacks, because a configuration is also stored as JSON."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r:.40} is not a text; put it in quotes")  # noqa: TRY004
            _check_plain(key)
            _check_plain(inside)
    elif isinstance(value, list):
        for inside in value:
            _check_plain(inside)
    else:
        _check_plain_scalar(value)


def _check_plain_scalar(value: Any) -> None:
    if isinstance(value, str):
        value.encode()  # Half of a pair of surrogates is no character.
        if "\0" in value:
            raise ValueError(f"{value!r:.40} holds a zero byte, which no path or name can")
    elif isinstance(value, int):
        if abs(value) > _LARGEST_NUMBER:
            raise ValueError("a number has more than 63 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number")
    elif value is not None:
        raise ValueError(f"{value!r:.40} is read as a {type(value).__name__}; put it in quotes")


def set_key(document: dict[str, Any], key: str, value: Any, *, name: str) -> None:
    """Set a value in a document, in place.

    Args:
        document: The document, of JSON's own types.
        key: String. Dotted key, `phases.0.epochs`.
        value: The value, of JSON's own types.
        name: String. Name of the setting, with which messages begin.

    Raises:
        ConfigError: The key leads into a value, or beyond the end of a list.
    """
    *parents, last = _parts(key)
    target: Any = document
    for part in parents:
        target = _section_at(target, part) if isinstance(target, dict) else _element(target, part, name)
    if isinstance(target, dict):
        target[last] = value
    else:
        _element(target, last, name)
        target[int(last)] = value


def _apply_all(document: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set got `{override}`, expected `dotted.key=value`.")
        set_key(document, key, _parse(value, f"--set {key}"), name=f"--set {key}")


def _parts(key: str) -> list[str]:
    # Keys of a sweep's space are dotted keys themselves.
    if key.startswith("sweep.space."):
        return ["sweep", "space", key.removeprefix("sweep.space.")]
    return key.split(".")


# `storage: folder` and `optimizer: adam` are short for a section; setting a key inside spells it out.
_SHORT_FORMS = {"storage": "uri", "features": "cache", "optimizer": "name", "scheduler": "kind"}


def _section_at(parent: dict[str, Any], name: str) -> Any:
    if isinstance(parent.get(name), str) and name in _SHORT_FORMS:
        parent[name] = {_SHORT_FORMS[name]: parent[name]}
    if parent.get(name) is None:
        parent[name] = {}
    return parent[name]


def _element(target: Any, part: str, name: str) -> Any:
    if isinstance(target, list) and part.isdigit() and int(part) < len(target):
        return target[int(part)]
    found = f"a list of {len(target)}" if isinstance(target, list) else f"`{target}`"
    raise ConfigError(f"{name}: `{part}` does not fit, {found} stands there.")
