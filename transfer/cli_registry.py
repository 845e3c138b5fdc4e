"""The commands `transfer registry …`: the versions of a configuration's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.cli_common import AsJson, ConfigPath, Overrides, errors_explained, load, run

if TYPE_CHECKING:
    from transfer.registry.describe import DescribedVersion
    from transfer.registry.versions import ModelVersion
    from transfer.storage import Store

registry_app = typer.Typer(
    help="List a model's versions, fetch and verify them, go back to one, keep one, remove old ones.",
    no_args_is_help=True,
)
VersionOrPromoted = Annotated[
    int | None, typer.Argument(metavar="VERSION", min=1, help="Number of the version. Default: the promoted one.")
]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of the version.")]


@registry_app.command("list")
def list_(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """List the versions: from which run and dataset, how good, how large, which one serves, which are pinned."""

    def work() -> dict[str, Any]:
        from transfer.registry.describe import describe_versions

        store, model = _open(config, overrides)
        listed = describe_versions(store, model)
        return {
            "model": model,
            "storage": store.uri,
            "promoted": next((each.version.number for each in listed if each.is_promoted), None),
            "versions": [_in_full(each) if json else _in_short(each) for each in listed],
        }

    run(work, json)


@registry_app.command("show")
def show(
    config: ConfigPath,
    version: VersionOrPromoted = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Show a version: its files, where it came from, and what the promotion log says about it."""

    def work() -> dict[str, Any]:
        from transfer.registry.describe import describe_version, promotions_about

        store, model = _open(config, overrides)
        shown = describe_version(store, model, version)
        answer = {"model": f"{store.uri}/{shown.version.folder}", **_in_full(shown)}
        if json:
            answer |= {"classes": shown.version.classes, "provenance": shown.version.provenance}
        promotions = [
            {"promotion": number, **entry.model_dump()} for number, entry in promotions_about(store, shown.version)
        ]
        if not json:
            promotions = [{**each, "replaces": str(each["replaces"] or "-")} for each in promotions]
        return answer | {"files": [file.model_dump() for file in shown.version.files], "promotions": promotions}

    run(work, json)


@registry_app.command("rollback")
def rollback(
    config: ConfigPath,
    reason: Annotated[str, typer.Option(help="Why, for the promotion log.")],
    overrides: Overrides = None,
    to: Annotated[
        int | None, typer.Option(min=1, help="Version to promote. Default: the one that served before the present one.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Serve an earlier version again, once all its bytes were verified: one more entry of the promotion log."""

    def work() -> dict[str, Any]:
        from transfer.registry.rollback import roll_back

        store, model = _open_to_write(config, overrides)
        done = roll_back(store, model, reason=reason, to=to)
        return {"model": model, "changed": done.changed, **done.promotion.model_dump()}

    run(work, json)


@registry_app.command("fetch")
def fetch(
    config: ConfigPath,
    to: Annotated[Path, typer.Option(help="Folder on this machine; the version becomes a folder in it.")],
    version: VersionOrPromoted = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Bring a version to this machine's disk, verified, for programs that read no bucket."""

    def work() -> dict[str, Any]:
        from transfer.registry.fetch import fetch_version, higher_number
        from transfer.registry.versions import load_version

        store, model = _open(config, overrides)
        wanted = load_version(store, model, version)
        folder = fetch_version(store, wanted, to)
        answer = {"model": model, "version": wanted.number, "folder": str(folder), "size_bytes": wanted.size_bytes}
        if higher := higher_number(wanted, to):
            answer["warning"] = f"{to}/{higher} is there, too, and TensorFlow Serving serves the highest number."
        return answer

    run(work, json)


@registry_app.command("verify")
def verify(
    config: ConfigPath,
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", min=1, help="Number of the version. Default: all.")
    ] = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Read all bytes of the versions, and ask each by every loader of SavedModels. Fails when one is wrong."""
    wrong: list[int] = []

    def work() -> dict[str, Any]:
        from transfer.registry.verify import problems_of_versions

        store, model = _open(config, overrides)
        rows = []
        for each, problem in problems_of_versions(store, model, version):
            wrong.extend([each.number] if problem else [])
            fine = None if json else "-"
            rows.append({"version": each.number, "run": each.provenance.get("run"), "problem": problem or fine})
        return {"model": model, "storage": store.uri, "wrong": len(wrong), "versions": rows}

    run(work, json)
    if wrong:
        from transfer.errors import RegistryError

        with errors_explained():
            raise RegistryError(
                f"Versions that cannot be served as they are: {', '.join(map(str, wrong))}.",
                advice="`transfer publish CONFIG --run-id RUN --again` makes a new version of a run.",
            )


@registry_app.command("pin")
def pin(
    config: ConfigPath,
    version: Version,
    reason: Annotated[str, typer.Option(help="Why, for the log and for whoever wonders later.")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Keep a version until it is unpinned, whatever `gc` is told."""

    def work() -> dict[str, Any]:
        from transfer.registry.pins import pin_version

        store, model = _open_to_write(config, overrides)
        return {"model": model, "pinned": True, **pin_version(store, model, version, reason=reason).model_dump()}

    run(work, json)


@registry_app.command("unpin")
def unpin(
    config: ConfigPath,
    version: Version,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Take a version's pin away."""

    def work() -> dict[str, Any]:
        from transfer.registry.pins import unpin_version

        store, model = _open_to_write(config, overrides)
        taken = unpin_version(store, model, version, reason=reason)
        return {"model": model, "pinned": False, "version": version, "changed": taken is not None}

    run(work, json)


@registry_app.command("gc")
def gc(
    config: ConfigPath,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay in any case.")],
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them, rather than say what would go.")] = False,
    json: AsJson = False,
) -> None:
    """Find old versions that nothing needs, and remove them if asked to. What serves is never touched."""

    def work() -> dict[str, Any]:
        from transfer.registry.retention import remove_old_versions

        store, model = _open_to_write(config, overrides) if yes else _open(config, overrides)
        cleaning = remove_old_versions(store, model, keep=keep, remove=yes)
        going, kept = cleaning.plan.going, cleaning.plan.kept
        number, why = ("version", "why") if json else ("removed" if yes else "would go", "because it is")
        return {
            "model": model,
            "storage": store.uri,
            "removed": yes,
            "size_bytes": sum(version.size_bytes for version in going),
            "unfinished": list(cleaning.unfinished),
            "going": [{number: version.number, **_origin(version)} for version in going],
            "left_alone": [{number if json else "left alone": each.version.number, why: each.why} for each in kept],
        }

    run(work, json)


def _open(path: Path, overrides: list[str] | None) -> tuple[Store, str]:
    """The configuration's storage, and the name of its model."""
    from transfer.storage import open_store

    loaded = load(path, overrides)
    return open_store(loaded.storage), loaded.name


def _open_to_write(path: Path, overrides: list[str] | None) -> tuple[Store, str]:
    """The same, found fit to decide between two who write at once."""
    from transfer.storage import open_store, probe

    loaded = load(path, overrides)
    store = open_store(loaded.storage)
    probe(store, single_writer=loaded.storage.single_writer)
    return store, loaded.name


def _in_full(described: DescribedVersion) -> dict[str, Any]:
    pin = described.pin
    return {
        "version": described.version.number,
        **_origin(described.version),
        "metrics": described.version.provenance.get("metrics"),
        "promoted": described.is_promoted,
        "pinned": pin.model_dump() if pin else None,
    }


def _in_short(described: DescribedVersion) -> dict[str, Any]:
    metrics = described.version.provenance.get("metrics", {})
    return {
        "version": described.version.number,
        **_origin(described.version),
        "split": metrics.get("split", "-"),
        "accuracy": metrics.get("accuracy", "-"),
        "loss": metrics.get("loss", "-"),
        "promoted": described.is_promoted,
        "pinned": described.pin.reason if described.pin else "-",
    }


def _origin(version: ModelVersion) -> dict[str, Any]:
    return {
        "published_at": version.published_at,
        "run": version.provenance.get("run"),
        "dataset": version.provenance.get("dataset"),
        "size_bytes": version.size_bytes,
    }
