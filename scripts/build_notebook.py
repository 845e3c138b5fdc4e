"""Write docs/notebook.ipynb: run the cells of scripts/notebook.py in a folder of their own, and keep what they print.

python -m scripts.build_notebook

The source shows nothing that differs from machine to machine: no times, no paths, no ids. Standard error is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "scripts/notebook.py"
NOTEBOOK = ROOT / "docs/notebook.ipynb"
NO_OUTPUT = "no-output"
"""Tag of a cell whose output is left out."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells() -> list[NotebookNode]:
    """The cells of the source, none of them run."""
    _, *parts = re.split(r"^# %%(.*)\n", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    made = []
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        identity = {"id": f"cell-{number:02}"}
        if "markdown" in kind:
            made.append(new_markdown_cell(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE), **identity))
        else:
            tags = {"tags": [NO_OUTPUT]} if "no output" in kind else {}
            made.append(new_code_cell(text.strip(), metadata=tags, **identity))
    return made


def build(folder: Path) -> NotebookNode:
    """Run the cells in `folder`, which gets what they store, and return the notebook with their outputs."""
    notebook = new_notebook(cells=cells(), metadata=METADATA)
    client = NotebookClient(notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": str(folder)}})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    client.execute(env=environment, stderr=subprocess.DEVNULL)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            is_shown = NO_OUTPUT not in cell.metadata.get("tags", [])
            cell.outputs = [output for output in cell.outputs if is_shown and _is_kept(output)]
    notebook.metadata = NotebookNode(METADATA)
    return notebook


def _is_kept(output: NotebookNode) -> bool:
    # Ray shows an empty piece of HTML where Tune ends.
    is_empty = output.output_type == "display_data" and not output.data.get("text/html", "something")
    return not is_empty and output.get("name") != "stderr"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(build(Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
