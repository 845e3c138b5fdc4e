"""Copies of the pages of a storage in a folder on this machine: an index, and the linked pages with readable names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from transfer.catalog import layout
from transfer.pages.contents import Contents
from transfer.pages.page import Page
from transfer.reports.templates import page_environment
from transfer.storage import PARALLEL, Store


def write_pages(store: Store, contents: Contents, folder: Path) -> Path:
    """Write the index and the pages that it links to into a folder, which is created. The pages link to each other.

    Returns the path of the index. Files of the same names are replaced. Raises StorageError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda page: copy_page(store, page, folder, beside=contents.run_pages), contents.pages))
    path = folder / "index.html"
    path.write_text(render_index(contents), encoding="utf-8")
    return path


def copy_page(store: Store, page: Page, folder: Path, *, beside: Mapping[str, Page] = MappingProxyType({})) -> Path:
    """Copy one page into a folder. Returns its path. `beside`: pages that it may link to, by id of the run."""
    files = {quote(run_id): quote(run.file) for run_id, run in beside.items()}

    def link(found: re.Match[str]) -> str:
        return f'href="{files[found[1]]}"' if found[1] in files else ""

    # Only pages of sweeps link to runs, by their names in storage.
    to_a_run = rf'href="(?:\.\./)+{layout.pattern(layout.run_start)}"'
    html = re.sub(to_a_run, link, store.read(page.name).decode())
    path = folder / page.file
    path.write_text(html, encoding="utf-8")
    return path


def render_index(contents: Contents) -> str:
    """Render one HTML page without scripts or external resources."""
    files = {layout.run_folder(run_id): page.file for run_id, page in contents.run_pages.items()}
    files |= {layout.sweep_folder(sweep.id): sweep.page.file for sweep in contents.sweeps.shown}
    for night in contents.nights.shown:
        if night.page:
            files[layout.night_folder(night.model, night.number)] = night.page.file
    serving = [row for row in contents.models.shown if row.promotion]
    newest = max(serving, key=lambda row: row.promotion.since if row.promotion else "", default=None)
    return (
        page_environment("pages")
        .get_template("index.html.j2")
        .render(
            contents=contents,
            files=files,
            run_folder=layout.run_folder,
            serving=len(serving),
            example=newest.name if newest else None,
        )
        .lstrip()
    )
