"""Families of networks for tests that hold for each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_of(families: Iterable[str], *, always: str, proof: Collection[str]) -> list[Any]:
    """All families as a test's parameters: one `always`, those that differ most as `proof`, the others thorough."""
    return [
        name
        if name == always
        else pytest.param(name, marks=pytest.mark.proof if name in proof else pytest.mark.thorough)
        for name in families
    ]
