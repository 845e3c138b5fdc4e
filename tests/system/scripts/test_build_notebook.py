"""The notebook of the documentation runs, and shows what it showed when it was built."""

import re

import nbformat
import pytest

from scripts.build_notebook import NOTEBOOK, build


def shown(notebook):
    """What each cell shows as text, with numbers and white space that may differ between processors left out."""
    return [
        [re.sub(r"[\d.]+", "0", " ".join(text_of(output).split())) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def text_of(output):
    return output.text if output.output_type == "stream" else output.data["text/plain"]


@pytest.mark.thorough
def test_the_notebook_runs_and_shows_what_it_showed(tmp_path):
    assert shown(build(tmp_path)) == shown(nbformat.read(NOTEBOOK, as_version=4))
