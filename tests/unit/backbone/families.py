"""Families of networks for tests that hold for each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_of(families: Iterable[str], *, always: Collection[str]) -> list[Any]:
    """All families as a test's parameters: those that differ most `always`, the others when all tests are run."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.thorough) for name in families]
