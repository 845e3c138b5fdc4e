"""Consequences of the statements of keys: which keys are part of an id, and which may be searched."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar, get_origin

from pydantic.fields import FieldInfo

from transfer.config.explain import section_in
from transfer.config.section import Decides, NotSearched, Section, Varies

LEARNED = frozenset({Decides.DATA, Decides.FEATURES, Decides.LEARNING})
"""A key that decides one of these decides what a run learns."""
_WHY_NOT_SEARCHED = {
    Decides.DATA: "trials can only be compared on the same images",
    Decides.SEARCH: "a sweep does not search itself",
    Decides.PLACEMENT: "it decides where a trial is computed, not what it learns",
    Decides.OUTPUT: "only the winner is published",
}

Statement = TypeVar("Statement", Decides, Varies, NotSearched)


def deciding(section: Section, *kinds: Decides, but: Varies = Varies(0)) -> dict[str, Any]:  # noqa: B008 - a constant
    """Select the keys of a section by what they decide.

    Args:
        section: The section.
        kinds: A key is selected if it decides one of these.
        but: Keys that may vary there are left out.

    Returns:
        The selected keys with their values, of JSON's own types.
    """
    return section.model_dump(mode="json", exclude=_others(type(section), frozenset(kinds), but))


@cache
def _others(model: type[Section], kinds: frozenset[Decides], but: Varies) -> dict[str, Any]:
    """Keys for pydantic to exclude, so that only selected keys are left, and no empty section."""
    excluded: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if decided_by(model, name).isdisjoint(kinds) or _varies(field) & but:
            excluded[name] = True
        elif section is not None and (inside := _others(section, kinds, but)):
            excluded[name] = {"__all__": inside} if get_origin(field.annotation) in (list, dict) else inside
    return excluded


@cache
def decided_by(model: type[Section], name: str) -> frozenset[Decides]:
    """What a key decides; for a section, what its keys decide. Empty: it has no statement."""
    field = model.model_fields[name]
    section = section_in(field.annotation)
    if section is not None:
        return frozenset(kind for inner in section.model_fields for kind in decided_by(section, inner))
    own = _stated(field, Decides) or model.decides
    return frozenset() if own is None else frozenset({own})


def keys_that_vary(model: type[Section], where: Varies) -> tuple[str, ...]:
    """List the keys that may have several values although everything else stays the same.

    Args:
        model: The section's class.
        where: In which respect they may vary.

    Returns:
        Dotted keys, with `*` for the index in a list: `phases.*.learning_rate`.
    """
    return tuple(key for key, field in _keys(model, "") if _varies(field) & where)


def why_not_searched(model: type[Section], key: str) -> str | None:
    """Why a sweep may not search a dotted key; None if it may, and for a key that does not exist."""
    for part in key.split("."):
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        if field is None:
            return None
        if stated := _stated(field, NotSearched):
            return stated.why
        kinds = decided_by(model, part)
        if kinds.isdisjoint({Decides.FEATURES, Decides.LEARNING}):
            return next((why for kind, why in _WHY_NOT_SEARCHED.items() if kind in kinds), None)
        section = section_in(field.annotation)
        if section is None:
            return None
        model = section
    return None


def _keys(model: type[Section], above: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is None:
            yield above + name, field
        else:
            among = "*." if get_origin(field.annotation) in (list, dict) else ""
            yield from _keys(section, f"{above}{name}.{among}")


def _varies(field: FieldInfo) -> Varies:
    return _stated(field, Varies) or Varies(0)


def _stated(field: FieldInfo, kind: type[Statement]) -> Statement | None:
    """The statement of this kind in a field's annotation; None without one."""
    return next((each for each in field.metadata if isinstance(each, kind)), None)
