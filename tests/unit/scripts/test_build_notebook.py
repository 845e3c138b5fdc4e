"""The notebook of the documentation: its cells are those of its source, and what they gave names no machine."""

import json
import re

import nbformat
import pytest

from scripts.build_notebook import NO_OUTPUT, NOTEBOOK, cells


@pytest.fixture(scope="module")
def notebook():
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_its_cells_are_those_of_the_source(notebook):
    assert [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.id, cell.cell_type, cell.source) for cell in cells()
    ], "run `make notebook`"


def test_its_code_is_python(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, cell.id, "exec")


def test_every_cell_was_run_in_order_and_none_failed(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for cell in code for output in cell.outputs} == {
        "display_data",
        "execute_result",
        "stream",
    }
    assert [cell.source for cell in code if not cell.outputs] == ["run"]
    assert [cell.source for cell in code if NO_OUTPUT in cell.metadata.get("tags", [])] == ["run"]


def test_its_outputs_have_no_paths_times_or_ids(notebook):
    outputs = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert re.findall(r"/(?:tmp|home|root|work|usr)/|\b20\d\d-\d\d|digits-[0-9a-f]{6,}|0x[0-9a-f]{6,}", outputs) == []
