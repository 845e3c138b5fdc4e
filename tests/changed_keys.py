"""Every key of the configuration, each with a changed value: for what must notice any of them."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from transfer.config import Config, parse_config, set_key
from transfer.errors import ConfigError


def changed_keys(config: Config, under: str = "", **values: Any) -> dict[str, Config | None]:
    """By each dotted key below `under`, the configuration with another value there; None where none was found.

    `values`: for keys whose other values cannot be found by trying, with `__` for the dots.
    """
    given = {key.replace("__", "."): value for key, value in values.items()}
    found = {}
    for key, value, annotation in _leaves(config, ()):
        if not key.startswith(under):
            continue
        candidates = [given[key]] if key in given else _others(value, annotation)
        changed = (_with(config, key, candidate) for candidate in candidates)
        found[key] = next((each for each in changed if each is not None and each != config), None)
    return found


def is_listed(key: str, reasons: dict[str, list[str]]) -> bool:
    """Whether a key is one of those, or matches one of those patterns, that are listed by reason."""
    return any(fnmatchcase(key, pattern) for patterns in reasons.values() for pattern in patterns)


def _leaves(section: BaseModel, above: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    for name, field in type(section).model_fields.items():
        value, path = getattr(section, name), (*above, name)
        if isinstance(value, list) and value and isinstance(value[0], BaseModel):
            value, path = value[0], (*path, "0")
        if isinstance(value, BaseModel):
            yield from _leaves(value, path)
        else:
            yield ".".join(path), value, field.annotation


def _others(value: Any, annotation: Any) -> Iterator[Any]:
    members = [annotation, *get_args(annotation)]
    yield from (choice for member in members if get_origin(member) is Literal for choice in get_args(member))
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value * 2, value / 2, value * 0.9, value + 0.125)
    elif isinstance(value, str):
        yield from (f"{value}x", "other")
    elif isinstance(value, list):
        yield from ([*value, 8], [*value, "other"])
    elif isinstance(value, dict):
        yield {**value, "other": "another"}
    else:
        yield from (1, 0.5, "other", "other/1", ["one", "other"])


def _with(config: Config, key: str, value: Any) -> Config | None:
    document = config.model_dump(mode="json")
    set_key(document, key, value, name=key)
    try:
        return parse_config(document)
    except ConfigError:
        return None
