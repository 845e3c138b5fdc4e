import json
import re
from pathlib import Path

from transfer.config.models import Config
from transfer.config.reference import json_schema, reference_page

ROOT = Path(__file__).parents[3]


def test_every_key_is_documented():
    def undocumented(schema):
        return [
            name for name, field in schema.get("properties", {}).items() if not ({"description", "$ref"} & set(field))
        ]

    schema = json.loads(json_schema())
    found = {title: undocumented(part) for title, part in [("Config", schema), *schema["$defs"].items()]}
    assert {title: names for title, names in found.items() if names} == {}


def test_the_reference_page_is_up_to_date():
    assert (ROOT / "docs/configuration.md").read_text() == reference_page()


def test_the_schema_is_up_to_date():
    assert (ROOT / "docs/configuration.schema.json").read_text() == json_schema()


def test_durations_sizes_and_angles_carry_their_unit_in_the_name():
    page = reference_page()
    for quantity in ("timeout", "size", "rotation", "patience"):
        for name in re.findall(rf"\| `(\w*{quantity}\w*)`", page):
            assert name.endswith(("_s", "_bytes", "_degrees", "_epochs", "image_size", "batch_size", "_ratio")), name


def test_the_schema_refuses_unknown_keys():
    assert Config.model_json_schema()["additionalProperties"] is False
