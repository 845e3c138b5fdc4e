"""The commands `transfer cache …`: what is kept of the frozen part."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.cli_common import AsJson, ConfigPath, Overrides, errors_explained, load, run

if TYPE_CHECKING:
    from transfer.activations.cache import Cleanup, Collection, Summary
    from transfer.activations.usage import UnfinishedRun
    from transfer.activations.verify import Damage
    from transfer.storage import Store

cache_app = typer.Typer(help="See, clean up and verify what is kept of the frozen part.", no_args_is_help=True)


@cache_app.command("ls")
def ls(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Show what is kept in the configuration's storage, for which networks, and how much of it is in use."""

    def work() -> dict[str, Any]:
        from transfer.activations.cache import summarize

        store = _store(config, overrides)
        summaries = summarize(store)
        answer = {
            "storage": store.uri,
            "prefixes": len(summaries),
            "shards": sum(summary.kept.shards for summary in summaries),
            "images": sum(summary.kept.images for summary in summaries),
            "size_bytes": sum(summary.kept.size_bytes for summary in summaries),
            "reachable_bytes": sum(summary.reachable.size_bytes for summary in summaries),
            "orphans": sum(summary.orphans for summary in summaries),
        }
        return answer | {"kept": [_in_full(each) if json else _in_short(each) for each in summaries]}

    run(work, json)


@cache_app.command("gc")
def gc(
    config: ConfigPath,
    overrides: Overrides = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="DIGEST", help="Also all that is kept of this prefix. Its first digits are enough."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it, rather than say what would go.")] = False,
    abandoned_after_days: Annotated[
        float, typer.Option(min=0, max=36500, help="Unfinished runs count for so long after their last attempt.")
    ] = 30,
    json: AsJson = False,
) -> None:
    """Find what no live dataset and no unfinished run needs, and remove it if asked to."""

    def work() -> dict[str, Any]:
        from transfer.activations.cache import collect_garbage

        store = _store(config, overrides)
        found = collect_garbage(
            store, named=prefix or [], remove=remove, abandoned_after=timedelta(days=abandoned_after_days)
        )
        answer = {
            "storage": store.uri,
            "removed": remove,
            "shards": sum(len(cleanup.shards) for cleanup in found.cleanups),
            "orphans": sum(len(cleanup.orphans) for cleanup in found.cleanups),
            "size_bytes": sum(cleanup.size_bytes for cleanup in found.cleanups),
        }
        return answer | (_collection_in_full(found) if json else _collection_in_short(found, remove=remove))

    run(work, json)


@cache_app.command("verify")
def verify(
    config: ConfigPath,
    overrides: Overrides = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged.")] = False,
    json: AsJson = False,
) -> None:
    """Read all that is kept and compare it with its digests. Fails when something damaged is left."""
    damaged: list[Damage] = []

    def work() -> dict[str, Any]:
        from transfer.activations.verify import verify as verify_all

        store = _store(config, overrides)
        found = verify_all(store, remove=remove)
        damaged.extend(found.damaged)
        answer = {"storage": store.uri, "objects": found.objects, "size_bytes": found.size_bytes}
        rows = [vars(damage) if json else _damage_in_short(damage) for damage in found.damaged]
        return answer | {"damaged": len(rows), "removed": remove and bool(rows), "damage": rows}

    run(work, json)
    if damaged and not remove:
        from transfer.errors import CorruptObjectError

        with errors_explained():
            raise CorruptObjectError(
                f"Damaged objects among what is kept: {len(damaged)}.",
                advice="Repeat it with --remove: they are removed, and computed again when they are needed.",
            )


def _store(path: Path, overrides: list[str] | None) -> Store:
    from transfer.storage import open_store

    return open_store(load(path, overrides).storage)


def _in_full(summary: Summary) -> dict[str, Any]:
    return {
        "prefix": summary.prefix,
        "description": summary.description,
        "kept": vars(summary.kept),
        "reachable": vars(summary.reachable),
        "orphans": summary.orphans,
        "unfinished_runs": [_run(each) for each in summary.runs],
    }


def _in_short(summary: Summary) -> dict[str, Any]:
    described = summary.description
    return {
        **_described(summary),
        "image size": str(described.get("image_size", "?")),
        "dtype": described.get("dtype", "?"),
        "view": str(described["view"]["index"]) if described.get("view") else "-",
        "shards": summary.kept.shards,
        "images": summary.kept.images,
        "bytes": summary.kept.size_bytes,
        "reachable shards": summary.reachable.shards,
        "reachable bytes": summary.reachable.size_bytes,
        "unfinished runs": [each.id for each in summary.runs] or "-",
    }


def _collection_in_full(found: Collection) -> dict[str, Any]:
    prefixes = [
        {**vars(cleanup), "left_alone": [vars(each) for each in cleanup.left_alone]} for cleanup in found.cleanups
    ]
    return {"prefixes": prefixes, "abandoned_runs": [_run(each) for each in found.abandoned]}


def _collection_in_short(found: Collection, *, remove: bool) -> dict[str, Any]:
    going = "removed" if remove else "would go:"
    return {
        "abandoned_runs": [each.id for each in found.abandoned],
        "going": [
            {
                **_described(cleanup),
                f"{going} shards": len(cleanup.shards),
                f"{going} orphans": len(cleanup.orphans),
                f"{going} bytes": cleanup.size_bytes,
            }
            for cleanup in found.cleanups
            if cleanup.removes
        ],
        "left_alone": [
            {
                **_described(cleanup),
                "left alone: shards": each.shards,
                "left alone: orphans": each.orphans,
                "because of": each.why,
            }
            for cleanup in found.cleanups
            for each in cleanup.left_alone
        ],
    }


def _damage_in_short(damage: Damage) -> dict[str, Any]:
    _, prefix, name = damage.name.split("/")
    return {"prefix": prefix[:12], "object": name, "found": damage.found}


def _described(of: Summary | Cleanup) -> dict[str, Any]:
    return {"prefix": of.prefix[:12], "base": of.description.get("base", "?"), "cut": of.description.get("cut", "?")}


def _run(of: UnfinishedRun) -> dict[str, Any]:
    return {"run": of.id, "dataset": of.dataset, "started": of.started.isoformat()}
