"""What mkdocs.yml calls: pages outside docs/ and the notebook become pages of the site, with links that lead there.

Links are written for the repository, where README.md has `docs/train.md` and docs/storage.md has `../CONTRIBUTING.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "notebook.ipynb": "notebook.md",
}
"""Pages of the site by their files outside docs/, or of another kind."""
NOTEBOOK = ROOT / "docs/notebook.ipynb"
LINK = re.compile(r"\]\((?P<up>\.\./|docs/)?(?P<file>[\w.-]+)(?P<anchor>#[\w-]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the notebook."""
    for name, page in OUTSIDE.items():
        content = notebook_page() if name == NOTEBOOK.name else (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links between files of the repository into links between pages."""
    return LINK.sub(lambda link: f"]({OUTSIDE.get(link['file'], link['file'])}{link['anchor'] or ''})", markdown)


def notebook_page() -> str:
    """The notebook as Markdown: texts, code, and what the code gave."""
    heading, *parts = (
        part for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] for part in _parts(cell)
    )
    title, _, text = heading.partition("\n")
    download = f'<a href="{NOTEBOOK.name}" download>The notebook itself</a> can be run in Jupyter.'
    return "\n\n".join([title, download, text, *parts])


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
    for output in cell.get("outputs", []):
        given = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
        if "image/png" in given:
            yield f"![What the cell draws](data:image/png;base64,{given['image/png'].strip()})"
        elif table := re.search(r"<table.*</table>", given.get("text/html", ""), re.DOTALL):
            yield re.sub(r"<(table|tr)[^>]*>", r"<\1>", table[0])
        else:
            yield f"```text\n{(given.get('text/plain') or ''.join(output['text'])).strip()}\n```"
