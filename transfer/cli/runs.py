"""The commands `transfer runs …` and `transfer open`: runs in storage as lists, and pages."""

from __future__ import annotations

import tempfile
import webbrowser
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.catalog import layout
from transfer.cli.common import AsJson, ConfigOrNone, ConfigPath, Overrides, StorageUri, opened, opened_either, run
from transfer.runtime.numbers import many, percent

if TYPE_CHECKING:
    from transfer.maintenance.runs import StoredRun

runs_app = typer.Typer(help="List a model's runs, show one, remove old ones.", no_args_is_help=True)


@runs_app.command("list")
def list_(
    config: ConfigOrNone = None, storage: StorageUri = None, overrides: Overrides = None, json: AsJson = False
) -> None:
    """List the runs of the model: start, dataset version, progress, accuracy, published versions, and size."""

    def work() -> dict[str, Any]:
        from transfer.maintenance.runs import accuracies, list_runs, versions_from

        loaded, store = opened_either(config, storage, overrides)
        model = loaded.name if loaded else None
        runs = list_runs(store, model)
        how_good, versions = accuracies(store, runs), versions_from(store)
        nothing = None if json else "-"
        rows = []
        for each in runs:
            accuracy, split = how_good[each.id]
            shown = nothing if accuracy is None else accuracy if json else percent(accuracy)
            rows.append(
                _described(each, nothing)
                | ({} if model else {"model": each.model})
                | {"accuracy": shown, "split": split or nothing}
                | {"versions": list(versions.get(each.id, ())) or ([] if json else nothing)}
                | {"size_bytes": each.size_bytes}
            )
        total = sum(each.size_bytes for each in runs)
        return {"model": model, "storage": store.uri, "size_bytes": total, "runs": rows}

    run(work, json)


@runs_app.command("show")
def show(
    config: ConfigPath,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Show a run in full: its configuration, checkpoints, reports, and the versions published from it."""

    def work() -> dict[str, Any]:
        from transfer.errors import TrainingError
        from transfer.maintenance.runs import checkpoints_of, objects_of_runs, read_run, reports_of, versions_from

        _, store = opened(config, overrides)
        objects = objects_of_runs(store, f"{layout.run_folder(run_id)}/").get(run_id, ())
        shown = read_run(store, run_id, objects)
        if shown is None:
            raise TrainingError(
                f"There is no run `{run_id}` in {store.uri}.", advice="`transfer runs list` shows all runs."
            )
        nothing = None if json else "-"
        answer = {
            "folder": f"{store.uri}/{layout.run_folder(run_id)}",
            **_described(shown, nothing),
            "model": shown.model,
        }
        answer |= {"versions": list(versions_from(store).get(run_id, ())), "size_bytes": shown.size_bytes}
        checkpoints = checkpoints_of(store, shown)
        for row in checkpoints:
            row["written"] = row["written"] or nothing
        told = shown.start.config
        return answer | {
            "checkpoints": checkpoints,
            "reports": reports_of(store, shown),
            "config": told if json else [{"key": key, "value": str(value)} for key, value in _flat(told)],
        }

    run(work, json)


@runs_app.command("gc")
def gc(
    config: ConfigPath,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest runs stay in any case.")],
    overrides: Overrides = None,
    at_work_days: Annotated[
        float, typer.Option(min=0, max=36500, help="Runs that were written to in the last so many days stay.")
    ] = 1,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the runs, instead of only listing them.")] = False,
    json: AsJson = False,
) -> None:
    """Find old runs that nothing needs, and checkpoints that no finished run needs; `--remove` removes them."""

    def work() -> dict[str, Any]:
        from transfer.cli.output import removal
        from transfer.maintenance.old_runs import remove_old_runs

        loaded, store = opened(config, overrides)
        model = loaded.name
        found = remove_old_runs(store, model, keep=keep, at_work=timedelta(days=at_work_days), remove=remove)
        name, why = ("run", "why") if json else ("removed run" if remove else "would go", "because it is")
        nothing = None if json else "-"
        going = [{**_described(each, nothing, name), "size_bytes": each.size_bytes} for each in found.going]
        parts = [
            *([many(len(going), "run")] if going else []),
            *([f"what is left of {many(len(found.unfinished), 'run')}"] if found.unfinished else []),
            *([f"older checkpoints of {many(len(found.checkpoints), 'run')}"] if found.checkpoints else []),
        ]
        what = f"{', '.join(parts)}: {found.size_bytes:,} bytes" if parts else ""
        summed = {"removed": remove, "size_bytes": found.size_bytes}
        return {
            "model": model,
            "storage": store.uri,
            **(summed if json else removal(what, removed=remove)),
            "unfinished": sorted(found.unfinished),
            "going": going,
            "left_alone": [{name if json else "left alone": each.run.id, why: each.why} for each in found.kept],
            "checkpoints": [
                {
                    "run" if json else "older checkpoints of": run_id,
                    "objects": len(items),
                    "size_bytes": sum(item.size_bytes for item in items),
                }
                for run_id, items in sorted(found.checkpoints.items())
            ],
        }

    run(work, json)


def _described(stored: StoredRun, nothing: str | None, name: str = "run") -> dict[str, Any]:
    """How a row about a run begins. `nothing`: what stands for what is not known. `name`: of the run's id."""
    return {
        name: stored.id,
        "started": stored.start.started or nothing,
        "dataset": stored.dataset,
        "state": stored.state,
    }


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of a configuration, as `--set` takes them, with their values; empty values are left out."""
    if isinstance(value, dict) and value:
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{key}.{name}" if key else name)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [pair for index, inner in enumerate(value) for pair in _flat(inner, f"{key}.{index}")]
    return [] if value in (None, {}, []) else [(key, value)]


open_app = typer.Typer()


@open_app.command("open")
def open_(
    config: ConfigOrNone = None,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="`index`, `night` (the model's newest), a night's number, or the id of a run, sweep or range test.",
        ),
    ] = "index",
    storage: StorageUri = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder for the pages, which are then not opened. Default: a new temporary folder."),
    ] = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Copy pages to this machine and open one: an index of a storage's models, nights, sweeps and runs, or one page."""

    def work() -> dict[str, Any]:
        from transfer.pages.contents import read_contents
        from transfer.pages.page import page_about
        from transfer.pages.write import copy_page, write_pages

        loaded, store = opened_either(config, storage, overrides)
        page = None if what == "index" else page_about(store, what, model=loaded.name if loaded else "")
        folder = (to or Path(tempfile.mkdtemp(prefix="transfer-pages-"))).absolute()
        if page is None or to is not None:
            contents = read_contents(store)
            path = write_pages(store, contents, folder)
            beside = contents.run_pages
        else:
            beside = {}
        if page is not None:
            path = copy_page(store, page, folder, beside=beside)
        return {"page": str(path), "opened": to is None and webbrowser.open(path.as_uri())}

    run(work, json)
