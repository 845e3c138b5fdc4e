"""What is generated from the configuration's models: the reference page, the JSON Schema, and resolved examples."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from transfer.config.decides import decided_by
from transfer.config.explain import section_in
from transfer.config.models import Config
from transfer.config.section import Decides, Section


def json_schema() -> str:
    """JSON Schema of the configuration file, for editors."""
    return json.dumps(Config.model_json_schema() | {"description": _about(Config)}, indent=2) + "\n"


def render(config: Config) -> str:
    """The whole configuration as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def reference_page() -> str:
    """`docs/configuration.md`: every key with its type, default, what it decides, and meaning."""
    lines = [
        "# Configuration reference",
        "",
        "Generated from the models in `transfer/config/` by `make docs`. Unknown keys are refused; durations, sizes",
        "and angles carry their unit in the name. Any key can be set on the command line: `--set phases.0.epochs=3`.",
        "",
        "A relative path in a configuration begins in the folder of its file, whatever folder a command is called",
        "from. One in `--set` begins in the current folder. `~` is your home. `transfer config show` prints whole",
        "paths, as they are used. Runs, sweeps and datasets are named by what files hold, not by where they are.",
        "",
        "What a key decides says what a change of it can make anew:",
        "",
        "- *data*: the dataset version, and all that follows",
        "- *features*: the cached features, and the run",
        "- *learning*: the run",
        "- *search*: the sweep; runs of its trials that are there already are used again",
        "- *placement*: nothing; where and how fast it is computed, and where it is kept",
        "- *output*: what becomes of a trained model: how it is judged, published and announced",
        "",
    ]
    for path, model in _sections(Config, ""):
        lines += [f"## `{path}`" if path else "## Top level", "", _about(model), ""]
        lines += ["| key | type | default | decides | meaning |", "|---|---|---|---|---|"]
        for name, field in model.model_fields.items():
            default = _default(field)
            meaning = _text(field.description) or _about(section_in(field.annotation) or BaseModel)
            decides = ", ".join(kind.value for kind in Decides if kind in decided_by(model, name))
            lines.append(f"| `{name}` | {_type(field.annotation)} | {default} | {decides} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _sections(model: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
    yield path, model
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is not None:
            yield from _sections(section, f"{path}.{name}".removeprefix("."))


def _default(field: Any) -> str:
    if field.default_factory is not None:
        value = field.default_factory()
        return "one phase" if value and isinstance(value[0], BaseModel) else f"`{json.dumps(value)}`"
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _type(annotation: Any) -> str:
    section = section_in(annotation)
    if section is not None and get_origin(annotation) in (Union, types.UnionType):
        return " \\| ".join(_type(member) for member in get_args(annotation) if member is not type(None))
    if section is not None:
        return {list: "list of sections", dict: "map of sections"}.get(get_origin(annotation), "section")
    schema = _schema_of(annotation)
    return schema.replace("|", "\\|")


def _schema_of(annotation: Any) -> str:
    from pydantic import TypeAdapter

    return " | ".join(_type_names(TypeAdapter(annotation).json_schema()))


def _type_names(schema: dict[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [name for member in schema["anyOf"] for name in _type_names(member) if name != "null"]
    if "enum" in schema:
        return [f"`{value}`" for value in schema["enum"]]
    if "const" in schema:
        return [f"`{schema['const']}`"]
    if "prefixItems" in schema:
        return [f"list of {len(schema['prefixItems'])} {_type_names(schema['prefixItems'][0])[0]}s"]
    if schema.get("type") == "array":
        return [f"list of {' | '.join(_type_names(schema['items']))}"]
    return [{"object": "map"}.get(schema.get("type", "any"), schema.get("type", "any"))]


def _about(model: type[BaseModel]) -> str:
    """The docstring of a section, without its example in Python."""
    return _text((model.__doc__ or "").partition("Example:")[0])


def _text(text: str | None) -> str:
    return " ".join((text or "").split())
