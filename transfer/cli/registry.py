"""The commands `transfer registry …`: the versions of a configuration's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from transfer.runtime.numbers import many, percent

if TYPE_CHECKING:
    from transfer.catalog.model import ModelVersion
    from transfer.errors import TransferError
    from transfer.registry.describe import DescribedVersion, Refusal
    from transfer.storage import Store

registry_app = typer.Typer(
    help="List, fetch and verify a model's versions, promote one or roll back, pin one, remove old ones.",
    no_args_is_help=True,
)
VersionOrPromoted = Annotated[
    int | None, typer.Argument(metavar="VERSION", min=1, help="Number of the version. Default: the promoted one.")
]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of the version.")]


@registry_app.command("list")
def list_(
    config: ConfigOrNone = None, storage: StorageUri = None, overrides: Overrides = None, json: AsJson = False
) -> None:
    """List the versions of the model: run, dataset, accuracy, size, which one serves, and which are pinned."""

    def work() -> dict[str, Any]:
        from transfer.registry.describe import describe_versions
        from transfer.registry.versions import models_with_versions

        loaded, store = opened_either(config, storage, overrides)
        described = _in_full if json else _in_short
        if loaded is None:
            rows = [
                {"model": model, **described(each)}
                for model in models_with_versions(store)
                for each in describe_versions(store, model)
            ]
            return {"storage": store.uri, "versions": rows}
        model = loaded.name
        listed = describe_versions(store, model)
        if not listed:
            raise _no_model(store, model)
        return {
            "model": model,
            "storage": store.uri,
            "promoted": next((each.version.number for each in listed if each.is_promoted), None),
            "versions": [described(each) for each in listed],
        }

    run(work, json)


@registry_app.command("show")
def show(
    config: ConfigPath,
    version: VersionOrPromoted = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Show a version: its files, its origin, and its entries of the promotion log."""

    def work() -> dict[str, Any]:
        from transfer.registry.describe import describe_version, promotions_about, refusals_of

        loaded, store = opened(config, overrides)
        model = loaded.name
        shown = describe_version(store, model, version)
        answer = {"model": f"{store.uri}/{shown.version.folder}", **_in_full(shown)}
        refusals = refusals_of(store, shown.version)
        if json:
            answer |= {"classes": shown.version.classes, "provenance": shown.version.provenance.model_dump(mode="json")}
            answer |= {"refusals": [each.model_dump() for each in refusals]}
        promotions = [
            {"promotion": number, **entry.model_dump()} for number, entry in promotions_about(store, shown.version)
        ]
        files = [file.model_dump() for file in shown.version.files]
        if json:
            return answer | {"files": files, "promotions": promotions}
        evidence = [rule for each in promotions for rule in _rules(each.pop("evidence"), each["promotion"])]
        promotions = [{**each, "replaces": str(each["replaces"] or "-")} for each in promotions]
        answer["metrics"] = _metrics_text(shown.version)
        answer["refused"] = shown.refusal.text if shown.refusal else None
        refused = [rule for each in refusals for rule in _refused_by(each)]
        return answer | {"files": files, "promotions": promotions, "evidence": evidence, "refusals": refused or None}

    run(work, json)


@registry_app.command("promote")
def promote_(
    config: ConfigPath,
    version: Version,
    reason: Annotated[str, typer.Option(help="The reason, which the promotion log keeps.")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Verify all bytes of a version, and let it serve. Adds an entry to the promotion log."""
    _serve(config, overrides, version, reason, json)


@registry_app.command("rollback")
def rollback(
    config: ConfigPath,
    reason: Annotated[str, typer.Option(help="The reason, which the promotion log keeps.")],
    overrides: Overrides = None,
    to: Annotated[
        int | None, typer.Option(min=1, help="Version to promote. Default: the one that served before the present one.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Verify all bytes of an earlier version, and let it serve again. Adds an entry to the promotion log."""
    _serve(config, overrides, to, reason, json)


def _serve(config: Path, overrides: list[str] | None, version: int | None, reason: str, json: bool) -> None:
    def work() -> dict[str, Any]:
        from transfer.registry.promote import roll_back

        loaded, store = opened_to_write(config, overrides)
        model = loaded.name
        done = roll_back(store, model, reason=reason, to=version)
        answer = done.promotion.model_dump()
        if not json:
            answer.pop("evidence")
        return {"model": model, "changed": done.changed, **answer}

    run(work, json)


@registry_app.command("fetch")
def fetch(
    config: ConfigPath,
    to: Annotated[Path, typer.Option(help="Folder on this machine, in which the version becomes a folder.")],
    version: VersionOrPromoted = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Copy the version that serves, or another one, to this machine's disk, for programs without S3, and verify it."""

    def work() -> dict[str, Any]:
        from transfer.registry.fetch import fetch_version, higher_number
        from transfer.registry.promote import read_serving
        from transfer.registry.versions import load_version

        loaded, store = opened(config, overrides)
        model = loaded.name
        serving = read_serving(store, model)
        wanted = load_version(store, model, serving.version if version is None else version)
        folder = fetch_version(store, wanted, to, promotion=serving.number if version is None else None)
        answer = {"model": model, "version": wanted.number, "folder": str(folder), "size_bytes": wanted.size_bytes}
        if version is None and (higher := higher_number(folder)):
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
    """Read all bytes of the versions, and run each in every loader of SavedModels. Fails if a version is damaged."""
    wrong: list[int] = []

    def work() -> dict[str, Any]:
        from transfer.registry.verify import problems_of_versions

        loaded, store = opened(config, overrides)
        model = loaded.name
        rows = []
        for each, problem in problems_of_versions(store, model, version):
            wrong.extend([each.number] if problem else [])
            fine = None if json else "-"
            run_id = each.trained.run if each.trained else fine
            rows.append({"version": each.number, "run": run_id, "problem": problem or fine})
        return {"model": model, "storage": store.uri, "wrong": len(wrong), "versions": rows}

    run(work, json)
    if wrong:
        from transfer.errors import RegistryError

        end_with(
            RegistryError(
                f"Versions that are damaged or cannot be loaded: {', '.join(map(str, wrong))}.",
                advice="`transfer publish CONFIG --run-id RUN --again` makes a new version of a run.",
            )
        )


@registry_app.command("pin")
def pin(
    config: ConfigPath,
    version: Version,
    reason: Annotated[str, typer.Option(help="The reason, which the log keeps.")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Keep a version until it is unpinned: `gc` does not remove it."""

    def work() -> dict[str, Any]:
        from transfer.registry.retention import pin_version

        loaded, store = opened_to_write(config, overrides)
        model = loaded.name
        return {"model": model, "pinned": True, **pin_version(store, model, version, reason=reason).model_dump()}

    run(work, json)


@registry_app.command("unpin")
def unpin(
    config: ConfigPath,
    version: Version,
    reason: Annotated[str, typer.Option(help="The reason, which the log keeps.")] = "",
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Remove the pin of a version."""

    def work() -> dict[str, Any]:
        from transfer.registry.retention import unpin_version

        loaded, store = opened_to_write(config, overrides)
        model = loaded.name
        taken = unpin_version(store, model, version, reason=reason)
        return {"model": model, "pinned": False, "version": version, "changed": taken is not None}

    run(work, json)


@registry_app.command("gc")
def gc(
    config: ConfigPath,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay in any case.")],
    overrides: Overrides = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the versions, instead of only listing them.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Find old versions that nothing needs; `--remove` removes them. The version that serves is never removed."""

    def work() -> dict[str, Any]:
        from transfer.cli.output import removal
        from transfer.registry.retention import remove_old_versions

        loaded, store = (opened_to_write if remove else opened)(config, overrides)
        model = loaded.name
        cleaning = remove_old_versions(store, model, keep=keep, remove=remove)
        going, kept = cleaning.plan.going, cleaning.plan.kept
        number, why = ("version", "why") if json else ("removed version" if remove else "would go", "because it is")
        size_bytes = sum(version.size_bytes for version in going)
        parts = [
            *([f"{many(len(going), 'version')} ({size_bytes:,} bytes)"] if going else []),
            *([f"what is left of {many(len(cleaning.unfinished), 'version')}"] if cleaning.unfinished else []),
            *([many(len(cleaning.served), "copy for servers", "copies for servers")] if cleaning.served else []),
        ]
        summed = {"removed": remove, "size_bytes": size_bytes}
        return {
            "model": model,
            "storage": store.uri,
            **(summed if json else removal(", ".join(parts), removed=remove)),
            "unfinished": list(cleaning.unfinished),
            "copies": list(cleaning.served),
            "going": [_described(version, number) for version in going],
            "left_alone": [{number if json else "left alone": each.version.number, why: each.why} for each in kept],
        }

    run(work, json)


def _no_model(store: Store, model: str) -> TransferError:
    from transfer.errors import RegistryError
    from transfer.registry.versions import models_with_versions

    others = ", ".join(f"`{name}`" for name in models_with_versions(store))
    return RegistryError(
        f"Model `{model}` has no versions in {store.uri}.",
        advice=f"Models with versions: {others}. The configuration's `name` is the model."
        if others
        else "No model has versions there yet: `transfer train` publishes the first one.",
    )


def _in_full(described: DescribedVersion) -> dict[str, Any]:
    pin, trained = described.pin, described.version.trained
    return {
        **_described(described.version),
        "metrics": trained.metrics.model_dump() if trained else None,
        "untrained_classes": list(described.version.untrained_classes),
        "promoted": described.is_promoted,
        "pinned": pin.model_dump() if pin else None,
        "refused": described.refusal.model_dump() if described.refusal else None,
    }


def _in_short(described: DescribedVersion) -> dict[str, Any]:
    trained = described.version.trained
    metrics = trained.metrics if trained else None
    return {
        **_described(described.version),
        "split": metrics.split if metrics else None,
        "accuracy": percent(metrics.accuracy) if metrics else None,
        "loss": metrics.loss if metrics else None,
        "promoted": described.is_promoted,
        "pinned": described.pin.reason if described.pin else "-",
        "refused by": ", ".join(rule["name"] for rule in described.refusal.failed) if described.refusal else "-",
    }


def _metrics_text(version: ModelVersion) -> str:
    if version.trained is None:
        return "none: a pretrained classifier, published as it is"
    metrics = version.trained.metrics
    return f"accuracy {percent(metrics.accuracy)} on {metrics.split}, loss {metrics.loss:.4f}"


def _rules(evidence: dict[str, Any] | None, promotion: int) -> list[dict[str, Any]]:
    """The rules of a gate, one row for each."""
    rules = (evidence or {}).get("rules", [])
    return [{"promotion": promotion, "passed": rule["passed"], "rule": rule["text"]} for rule in rules]


def _refused_by(refusal: Refusal) -> list[dict[str, Any]]:
    """The rules of a gate that refused, one row for each."""
    evidence = refusal.evidence
    by = f"night {evidence['night']}" if "night" in evidence else f"run {evidence['run']}"
    beside = f"version {refusal.champion}" if refusal.champion else "nothing"
    about = {"refused at": refusal.at, "by": by, "beside": beside}
    return [{**about, "passed": rule["passed"], "rule": rule["text"]} for rule in evidence["rules"]]


def _described(version: ModelVersion, name: str = "version") -> dict[str, Any]:
    """How a row about a version begins. `name`: of the version's number."""
    trained = version.trained
    return {
        name: version.number,
        "published_at": version.published_at,
        "run": trained.run if trained else None,
        "dataset": trained.dataset if trained else None,
        "size_bytes": version.size_bytes,
    }
