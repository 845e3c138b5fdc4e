"""Every name in storage with what lies there, for docs/storage.md.

python -m scripts.tables.names    # print the tables; `make docs` writes them into the page
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from scripts.tables import markdown
from transfer.catalog import layout

# Eight digits, and no others: what stands for any number, until it is replaced by the word.
_NUMBERS = {
    word: 10**7 + place for place, word in enumerate(("number", "epoch", "trial", "version", "promotion", "part"))
}
_PARTS: dict[str, Any] = {
    "name": "<dataset>",
    "dataset": "<dataset>",
    "sha256": "<sha256>",
    "digest": "<digest>",
    "frozen_part": "<frozen part>",
    "shard_sha256": "<sha256 of the shard>",
    "rows": "<rows>",
    "parts": 1,
    "run": "<run>",
    "folder": layout.run_folder("<run>"),
    "split": "<split>",
    "test": "<test>",
    "test_folder": layout.range_test_folder("<test>"),
    "sweep": "<sweep>",
    "sweep_folder": layout.sweep_folder("<sweep>"),
    "pack": "<pack>",
    "model": "<model>",
    "night_folder": layout.night_folder("<model>", _NUMBERS["number"]),
    "unique": "<unique>",
    **_NUMBERS,
}
_RULES = {
    "check_name",
    "numbered",
    "entry",
    "part_of_predictions",
    "below",
    "sha256_in",
    "pattern",
    "entry_pattern",
    "is_removable",
    "goes_when_empty",
}
# Nothing lies in it but what has a row of its own.
_HAVE_ROWS = {"arrays_folder", "features_folder", "run_folder", "range_test_folder", "sweep_folder", "night_folder"}
_HAVE_ROWS |= {"serving_folder", "refusals_folder"}


def names() -> str:
    """All names, in the order of `transfer/catalog/layout.py`."""
    functions = [
        each for each in vars(layout).values() if inspect.isfunction(each) and each.__module__ == layout.__name__
    ]
    made = [
        each for each in functions if each.__name__ not in _RULES | _HAVE_ROWS and not each.__name__.endswith("_in")
    ]
    rows = [(f"`{_name(each)}`", str(each.__doc__).removesuffix(".")) for each in made]
    return markdown(["name", "what lies there"], [*rows, (f"`{layout.RAY}/…`", "Ray Train's own state")])


def _name(make: Callable[..., str]) -> str:
    """A name that a function makes, with `<part>` for what differs."""
    asked = list(inspect.signature(make).parameters)
    parts = {**_PARTS, **({"name": "<file>"} if "folder" in asked else {})}
    name = make(*(parts[each] for each in asked))
    if make.__name__.endswith("_log"):
        name = layout.entry(name, _NUMBERS["number"])
    elif make.__name__.endswith("_folder"):
        name = f"{name}/…"
    for word, number in _NUMBERS.items():
        name = name.replace(str(number), f"<{word}>")
    return name


if __name__ == "__main__":
    print(names())
