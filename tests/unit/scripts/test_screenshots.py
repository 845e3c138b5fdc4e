"""The script that takes pictures of pages, with whatever browser there is."""

import sys

import pytest

from scripts import screenshots
from scripts.example_pages import write_examples


def test_without_a_browser_it_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["screenshots", "--to", str(tmp_path), "--browser", "no-such-browser"])
    assert screenshots.main() == 2
    assert "no-such-browser" in capsys.readouterr().err


@pytest.mark.thorough
def test_no_example_is_wider_than_its_window(tmp_path):
    program = screenshots.find_browser()
    if program is None:
        pytest.skip("There is no browser.")
    write_examples(tmp_path / "pages")
    pages = sorted((tmp_path / "pages").glob("*.html"))
    assert len(pages) > 8
    assert screenshots.take(pages, tmp_path, program=program) == []
    assert len(list(tmp_path.glob("*.png"))) == 6 * len(pages)
