"""Modules that are hidden for a while."""

import contextlib
import importlib
import sys

import pytest

from transfer.runtime.startup import without_modules


def test_a_hidden_module_is_not_found_until_the_block_ends(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without_modules("colorsys", "json"):
        with pytest.raises(ModuleNotFoundError, match="colorsys"):
            importlib.import_module("colorsys")
        # What is there stays.
        assert importlib.import_module("json") is sys.modules["json"]
    assert importlib.import_module("colorsys").rgb_to_hsv


def test_other_modules_are_found_meanwhile_and_an_error_brings_all_back(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without_modules("pandas"):
        assert importlib.import_module("colorsys")
    with contextlib.suppress(ValueError), without_modules("pandas"):
        raise ValueError
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "transfer.runtime.startup"]
