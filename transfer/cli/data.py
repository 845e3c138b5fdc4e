"""The commands `transfer datasets …` and `transfer cache …`: dataset versions, and cached features."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.catalog import layout
from transfer.cli.common import (
    AsJson,
    ConfigOrNone,
    ConfigPath,
    Overrides,
    StorageUri,
    end_with,
    opened,
    opened_either,
    opened_to_write,
    run,
)
from transfer.config import ImageInput
from transfer.runtime.numbers import many

if TYPE_CHECKING:
    from transfer.dataset.decisions import Decided
    from transfer.maintenance.features import Cleanup, Collection, Summary, UnfinishedRun
    from transfer.maintenance.verify import Damage
    from transfer.storage import Store

datasets_app = typer.Typer(
    help="List the versions of a dataset, drop or restore a class, start over, remove old versions.",
    no_args_is_help=True,
)
ClassName = Annotated[str, typer.Argument(metavar="CLASS", help="Name of the class.")]
Reason = Annotated[str, typer.Option(help="The reason, which the log keeps.")]
_SPLITS = ("train", "validation", "test")


@datasets_app.command("list")
def list_(
    config: ConfigOrNone = None, storage: StorageUri = None, overrides: Overrides = None, json: AsJson = False
) -> None:
    """List the versions of the dataset: time of creation, number of images in each class and split, and size."""

    def work() -> dict[str, Any]:
        from transfer.dataset.decisions import read_decided
        from transfer.maintenance.runs import list_datasets

        loaded, store = opened_either(config, storage, overrides)
        name = loaded.dataset_name if loaded else None
        rows, latest = [], None
        for each in list_datasets(store, name):
            latest = each.dataset
            row: dict[str, Any] = {} if name else {"dataset": latest.name}
            row |= {"version": latest.number, "created": latest.created or (None if json else "-")}
            row |= {"classes": latest.classes if json else len(latest.classes)}
            row |= {"images": latest.counts} if json else {split: latest.rows(split) for split in _SPLITS}
            row |= {"indices_from": latest.indices_from, "size_bytes": each.size_bytes, "own_bytes": each.own_bytes}
            rows.append(row)
        if name is None:
            return {"storage": store.uri, "versions": rows}
        answer = {"dataset": name, "storage": store.uri, **_told(store, name, read_decided(store, name), json=json)}
        answer["versions"] = rows
        if latest is not None and not json:
            counts = latest.counts
            answer["images"] = [
                {f"class of version {latest.number}": each} | {split: counts[split][each] for split in _SPLITS}
                for each in latest.classes
            ]
        return answer

    run(work, json)


@datasets_app.command("drop-class")
def drop_class(
    config: ConfigPath, name: ClassName, reason: Reason, overrides: Overrides = None, json: AsJson = False
) -> None:
    """Leave a class out of the next version, in which the other classes get new indices. Existing versions stay."""

    def decide(store: Store, dataset: str) -> Decided:
        from transfer.dataset import decisions

        return decisions.drop_class(store, dataset, name, reason=reason)

    _decide(decide, config, overrides, json)


@datasets_app.command("restore-class")
def restore_class(
    config: ConfigPath, name: ClassName, reason: Reason, overrides: Overrides = None, json: AsJson = False
) -> None:
    """Restore a dropped class: the next ingest takes its images from the source again."""

    def decide(store: Store, dataset: str) -> Decided:
        from transfer.dataset import decisions

        return decisions.restore_class(store, dataset, name, reason=reason)

    _decide(decide, config, overrides, json)


@datasets_app.command("start-over")
def start_over(config: ConfigPath, reason: Reason, overrides: Overrides = None, json: AsJson = False) -> None:
    """Let the next version start over: all classes get new indices. Existing versions stay."""

    def decide(store: Store, dataset: str) -> Decided:
        from transfer.dataset import decisions

        return decisions.start_over(store, dataset, reason=reason)

    _decide(decide, config, overrides, json)


@datasets_app.command("gc")
def collect(
    config: ConfigPath,
    at_work_days: Annotated[
        float, typer.Option(min=0, max=36500, help="A version counts for so long after a later one came.")
    ] = 1,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it, rather than say what would go.")] = False,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Find old versions that no run, sweep or model needs, and shards of no version; `--remove` removes them."""

    def work() -> dict[str, Any]:
        from transfer.cli.output import removal
        from transfer.maintenance.old_datasets import remove_old_versions

        loaded, store = opened(config, overrides)
        found = remove_old_versions(store, loaded.dataset_name, at_work=timedelta(days=at_work_days), remove=remove)
        going = [version.reference for version in found.going]
        kept = [{"version": each.dataset.reference, "because of": each.why} for each in found.kept]
        answer: dict[str, Any] = {"dataset": loaded.dataset_name, "storage": store.uri}
        if json:
            summed = {"removed": remove, "objects": len(found.objects), "size_bytes": found.size_bytes}
            return {**answer, **summed, "left": found.left, "versions": going, "kept": kept}
        counted = f"{many(len(going), 'version')}, {many(len(found.objects), 'object')}: {found.size_bytes:,} bytes"
        told = removal(counted if going or found.objects else "", removed=remove)
        if found.left:
            told["left"] = f"{many(found.left, 'object')}, because the time of a removal was up: repeat the command"
        return {**answer, **told, "versions": going, "kept": kept}

    run(work, json)


def _decide(decide: Callable[[Store, str], Decided], config: Path, overrides: list[str] | None, json: bool) -> None:
    """Take a decision about the configuration's dataset, and return the resulting state."""

    def work() -> dict[str, Any]:
        loaded, store = opened_to_write(config, overrides)
        decided = decide(store, loaded.dataset_name)
        return {"dataset": loaded.dataset_name, **_told(store, loaded.dataset_name, decided, json=json)}

    run(work, json)


def _told(store: Store, dataset: str, decided: Decided, *, json: bool) -> dict[str, Any]:
    """The decisions for the next version, and whether `transfer ingest` will make one."""
    from transfer.dataset.decisions import is_pending

    dropped = [each.model_dump() if json else f"{each.name} ({each.reason})" for each in decided.dropped]
    return {
        "dropped": dropped,
        "forgotten": [each.model_dump() for each in decided.forgotten] if json else len(decided.forgotten),
        "starts_over_after": decided.starts_over_after or None,
        "takes_effect_with_the_next_ingest": is_pending(store, dataset, decided),
    }


cache_app = typer.Typer(help="List, clean up and verify cached features.", no_args_is_help=True)


@cache_app.command("list")
def list_cached(
    config: ConfigOrNone = None, storage: StorageUri = None, overrides: Overrides = None, json: AsJson = False
) -> None:
    """List the cached features in storage: networks, sizes, and how much is in use."""

    def work() -> dict[str, Any]:
        from transfer.maintenance.features import summarize

        _, store = opened_either(config, storage, overrides)
        summaries = summarize(store)
        answer = {
            "storage": store.uri,
            "frozen_parts": len(summaries),
            "shards": sum(summary.cached.shards for summary in summaries),
            "images": sum(summary.cached.images for summary in summaries),
            "size_bytes": sum(summary.cached.size_bytes for summary in summaries),
            "reachable_bytes": sum(summary.reachable.size_bytes for summary in summaries),
            "orphans": sum(summary.orphans for summary in summaries),
        }
        return answer | {"cached": [_in_full(each) if json else _in_short(each) for each in summaries]}

    run(work, json)


@cache_app.command("gc")
def gc(
    config: ConfigOrNone = None,
    storage: StorageUri = None,
    overrides: Overrides = None,
    frozen_part: Annotated[
        list[str] | None,
        typer.Option(metavar="DIGEST", help="Also find all features of this frozen part. The first digits are enough."),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the features, instead of only listing them.")
    ] = False,
    abandoned_after_days: Annotated[
        float,
        typer.Option(min=0, max=36500, help="Days since its last attempt after which an unfinished run is abandoned."),
    ] = 30,
    json: AsJson = False,
) -> None:
    """Find cached features that no live dataset and no unfinished run needs; `--remove` removes them."""

    def work() -> dict[str, Any]:
        from transfer.cli.output import removal
        from transfer.maintenance.features import collect_garbage

        _, store = opened_either(config, storage, overrides)
        found = collect_garbage(
            store, named=frozen_part or [], remove=remove, abandoned_after=timedelta(days=abandoned_after_days)
        )
        shards = sum(len(cleanup.shards) for cleanup in found.cleanups)
        orphans = sum(len(cleanup.orphans) for cleanup in found.cleanups)
        size_bytes = sum(cleanup.size_bytes for cleanup in found.cleanups)
        if json:
            summed = {"removed": remove, "shards": shards, "orphans": orphans, "size_bytes": size_bytes}
            return {"storage": store.uri, **summed, **_collection_in_full(found)}
        counted = f"{many(shards, 'shard')}, {many(orphans, 'orphan')}: {size_bytes:,} bytes"
        told = removal(counted if shards or orphans else "", removed=remove)
        return {"storage": store.uri, **told, **_collection_in_short(found, remove=remove)}

    run(work, json)


@cache_app.command("verify")
def verify(
    config: ConfigOrNone = None,
    storage: StorageUri = None,
    overrides: Overrides = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove damaged features.")] = False,
    json: AsJson = False,
) -> None:
    """Read all cached features and compare them with their digests. Fails if damaged features are left."""
    damaged: list[Damage] = []

    def work() -> dict[str, Any]:
        from transfer.maintenance.verify import verify as verify_all

        _, store = opened_either(config, storage, overrides)
        found = verify_all(store, remove=remove)
        damaged.extend(found.damaged)
        answer = {"storage": store.uri, "objects": found.objects, "size_bytes": found.size_bytes}
        rows = [vars(damage) if json else _damage_in_short(damage) for damage in found.damaged]
        return answer | {"damaged": len(rows), "removed": remove and bool(rows), "damage": rows}

    run(work, json)
    if damaged and not remove:
        from transfer.errors import CorruptObjectError

        end_with(
            CorruptObjectError(
                f"Damaged objects among the cached features: {len(damaged)}.",
                advice="Repeat the command with --remove. Removed features are computed again when a job needs them.",
            )
        )


def _in_full(summary: Summary) -> dict[str, Any]:
    return {
        "digest": summary.digest,
        "description": summary.description,
        "cached": vars(summary.cached),
        "reachable": vars(summary.reachable),
        "orphans": summary.orphans,
        "unfinished_runs": [_run(each) for each in summary.runs],
    }


def _in_short(summary: Summary) -> dict[str, Any]:
    described = summary.description
    return {
        **_described(summary),
        "images": ImageInput(**described["image_input"]).title if "image_input" in described else "?",
        "dtype": described.get("dtype", "?"),
        "view": str(described["view"]["index"]) if described.get("view") else "-",
        "shards": summary.cached.shards,
        "cached images": summary.cached.images,
        "bytes": summary.cached.size_bytes,
        "reachable shards": summary.reachable.shards,
        "reachable bytes": summary.reachable.size_bytes,
        "unfinished runs": [each.id for each in summary.runs] or "-",
    }


def _collection_in_full(found: Collection) -> dict[str, Any]:
    frozen_parts = [
        {**vars(cleanup), "left_alone": [vars(each) for each in cleanup.left_alone]} for cleanup in found.cleanups
    ]
    return {"frozen_parts": frozen_parts, "abandoned_runs": [_run(each) for each in found.abandoned]}


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
    digest, name = layout.below(layout.FEATURES, damage.name)
    return {"digest": digest[:12], "object": name, "found": damage.found}


def _described(of: Summary | Cleanup) -> dict[str, Any]:
    return {
        "digest": of.digest[:12],
        "base": of.description.get("base", "?"),
        "cut": of.description.get("cut", "?"),
    }


def _run(of: UnfinishedRun) -> dict[str, Any]:
    return {"run": of.id, "dataset": of.dataset, "started": of.started.isoformat()}
