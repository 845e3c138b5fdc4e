"""Problems of a configuration in sentences, whether it came from a file or was built in Python."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from transfer.config.section import Section

_SHOWN = 50
# Keys of earlier releases, and how they are called now. A near name would lead to another key.
_RENAMED = {
    "activations": "it is called `features`, and its `keep` is called `cache`",
    "features.keep": "it is called `cache`",
}
# Pydantic's own sentences name types of Python, which a reader of YAML does not know.
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "`true` or `false`",
    "bool_type": "`true` or `false`",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}


def explain(error: ValidationError, model: type[BaseModel], *, name: str) -> str:
    """List all problems of a document, a line for each, with the nearest known name for an unknown key or choice.

    `name`: name of the document, for example the path of its file.
    """
    lines = [f"  {line}" for line in islice(_problems(error, model), _SHOWN)]
    if error.error_count() > _SHOWN:
        lines.append(f"  and {error.error_count() - _SHOWN:,} more")
    return "\n".join([f"{name} is not a valid configuration:", *lines])


def fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the known keys at a place of a document."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            found = section_in(model.model_fields[part].annotation)
            model = found or model
    return list(model.model_fields)


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    before = None
    for problem in error.errors(include_url=False):
        is_unknown = problem["type"] == "extra_forbidden"
        # An unknown key may have any name, even that of a union tag.
        named = problem["loc"][-1:] if is_unknown else ()
        tagged = problem["loc"][: -len(named) or None]
        location = [*(part for part in tagged if not _is_union_tag(part)), *named]
        path = ".".join(str(part) for part in location)
        if is_unknown:
            yield f"{path}: unknown key; {_RENAMED.get(path) or _hint(model, location)}"
        elif problem["type"] == "missing":
            yield f"{path}: is missing and has no default"
        else:
            # Of a key that may have several types, there is a problem for each of them.
            message, advice = _message(problem, must_be="may also be" if path == before else "must be")
            found = problem["input"]
            # A key that expects the name of a variable may have received the secret itself.
            is_shown = isinstance(found, str | int | float) and not path.endswith("_env")
            message = f"{message} (found `{found}`){advice}" if is_shown else f"{message}{advice}"
            yield f"{path}: {message}" if path else message
        before = path


def _message(problem: ErrorDetails, *, must_be: str) -> tuple[str, str]:
    """What a value must be; the nearest choice, if it is to be one of several."""
    kind, words = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        # Pydantic has the choices only in words: `'stretch', 'crop' or 'pad'`.
        choices = problem["ctx"]["expected"].replace("'", "`")
        nearest = _nearest(str(problem["input"]), re.findall("`(.+?)`", choices))
        return f"{must_be} {choices}", f"; did you mean `{nearest}`?" if nearest else ""
    return f"{must_be} {_EXPECTED[kind]}" if kind in _EXPECTED else words.replace("Input should be", must_be), ""


def _hint(model: type[BaseModel], location: Sequence[int | str]) -> str:
    known = fields_at(model, location[:-1])
    nearest = _nearest(str(location[-1]), known)
    return f"did you mean `{nearest}`?" if nearest else f"known here: {', '.join(known)}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


def _is_union_tag(part: int | str) -> bool:
    """Pydantic adds the tried member of a union to an error's location; it is not a key."""
    is_section = isinstance(part, str) and part.endswith("Config")
    return is_section or (isinstance(part, str) and (part in {"int", "str", "literal", "dict"} or "[" in part))


def section_in(annotation: Any) -> type[Section] | None:
    """The section class in a field's annotation: alone, in a list, in a mapping, or as one of several types."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (list, dict, Union, types.UnionType):
        return next((found for member in get_args(annotation) if (found := section_in(member))), None)
    return None
