"""The command `transfer`: argument parsing and printing only."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from transfer.cli_cache import cache_app
from transfer.cli_common import AsJson, ConfigPath, Overrides, errors_explained, load, run
from transfer.cli_nightly import nightly_app
from transfer.cli_registry import registry_app
from transfer.cli_submit import submit_app
from transfer.cli_tuning import tuning_app
from transfer.startup import import_tensorflow, own_process, quiet_stderr

app = typer.Typer(
    help="Transfer learning for images: a folder of images in, a published SavedModel out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Check, show and document configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")
app.add_typer(registry_app, name="registry")
app.add_typer(tuning_app)
app.add_typer(nightly_app)
app.add_typer(submit_app)

RunId = Annotated[str, typer.Option("--run-id", help="The run, as `transfer train` printed it.")]


@app.command()
def ingest(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Bring images into storage as an immutable dataset version."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        dataset = pipeline.ingest(load(config, overrides))
        return {
            "dataset": dataset.reference,
            "classes": dataset.classes,
            "images": {split: dataset.rows(split) for split in ("train", "validation", "test")},
            "rejected": dataset.reject_counts,
            "rejects": dataset.rejects,
        }

    run(work, json)


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Name the run yourself.")] = None,
    json: AsJson = False,
) -> None:
    """Ingest, train, evaluate, publish and promote. Repeat it to continue an interrupted run."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        outcome = pipeline.train(load(config, overrides), run_id=run_id)
        version = outcome.version
        return {
            "run": outcome.run.id,
            "dataset": outcome.dataset.reference,
            "split": outcome.report.split,
            "accuracy": outcome.report.metrics.accuracy,
            "loss": outcome.report.metrics.loss,
            "report": outcome.report_uri,
            "version": version.number if version else None,
            "model": f"{outcome.run.store.uri}/{version.folder}" if version else None,
        }

    run(work, json)


@app.command()
def evaluate(
    config: ConfigPath,
    run_id: RunId,
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test. Default: test.")] = None,
    json: AsJson = False,
) -> None:
    """Evaluate a finished run on held-out images and write its report."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        report, uri = pipeline.evaluate(load(config, overrides), run_id=run_id, split=split)
        metrics = report.metrics
        return {"run": run_id, "split": report.split, "accuracy": metrics.accuracy, "loss": metrics.loss, "report": uri}

    run(work, json)


@app.command()
def publish(
    config: ConfigPath,
    run_id: RunId,
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="As a new version, where it is published already.")] = False,
    json: AsJson = False,
) -> None:
    """Export an evaluated run, prove that it answers the same, and publish it."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        loaded = load(config, overrides)
        version = pipeline.publish(loaded, run_id=run_id, again=again)
        return {"run": run_id, "version": version.number, "model": f"{loaded.storage.uri}/{version.folder}"}

    run(work, json)


@app.command()
def predict(
    config: ConfigPath,
    images: Annotated[str, typer.Option(help="Folder or s3:// prefix of images.")],
    output: Annotated[str, typer.Option(help="Parquet file to write, a path or s3://.")],
    overrides: Overrides = None,
    version: Annotated[int | None, typer.Option(help="Version to use. Default: the promoted one.")] = None,
    json: AsJson = False,
) -> None:
    """Answer a folder of images with the published model."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        return vars(pipeline.predict(load(config, overrides), images=images, output=output, version=version))

    run(work, json)


@app.command()
def inspect(
    network: Annotated[str, typer.Argument(metavar="CONFIG|NETWORK", help="A configuration, or a network's name.")],
    overrides: Overrides = None,
    image_size: Annotated[int, typer.Option(help="Image size, when a network is named.")] = 224,
    json: AsJson = False,
) -> None:
    """List a network's blocks: what each `unfreeze` depth would train, and what it costs."""

    def work() -> dict[str, Any]:
        import_tensorflow()

        from transfer.backbone.describe import describe
        from transfer.backbone.load import load_backbone
        from transfer.config import BaseNetworkConfig

        storage = None
        if network.endswith((".yaml", ".yml")):
            loaded = load(Path(network), overrides)
            base, storage = loaded.base, loaded.storage
        else:
            # Its structure does not depend on the weights, and random ones need no download.
            base = BaseNetworkConfig(model=network, weights="none", image_size=image_size)
        # Also a classifier's: who chooses the layer to tap has to see them.
        base = base.model_copy(update={"accept_head": True})
        rows = describe(load_backbone(base, storage=storage))
        return {"network": base.model, "blocks": rows if json else [_for_people(row) for row in rows]}

    run(work, json)


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    """A block in one line: what training from here up costs, and what is kept of an image below it."""
    return {
        "unfreeze": row["depth"],
        "block": row["block"],
        "layers": len(row["layers"]),
        "parameters": row["parameters"],
        "share of FLOPs": f"{row['flops_share']:.1%}",
        "trained share": f"{row['trained_flops_share']:.1%}",
        "output": " × ".join(map(str, row["output_shape"])),
        "output bytes": row["activation_bytes"],
        "kept bytes": row["kept_bytes"],
    }


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-output"),
    json: AsJson = False,
) -> None:
    """Train, publish and reload a model on real handwritten digits, offline, in a few minutes."""

    def work() -> dict[str, Any]:
        from transfer.demo.demo import run_demo

        return run_demo(output)

    run(work, json)


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Check a configuration, its sweep, storage, source, weights and unfreeze depths, without starting anything."""

    def work() -> dict[str, Any]:
        from transfer import pipeline
        from transfer.tuning.space import check_space

        loaded = load(config, overrides)
        if loaded.sweep is not None:
            check_space(loaded)
        pipeline.check(loaded)
        return {"config": str(config), "valid": True, "storage": loaded.storage.uri}

    run(work, json)


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Print the whole configuration, defaults included."""
    if json:
        run(lambda: load(config, overrides).model_dump(mode="json"), json)
        return
    from transfer.config.reference import render

    with errors_explained():
        sys.stdout.write(render(load(config, overrides)))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of configurations, for editors."""
    from transfer.config.reference import json_schema

    sys.stdout.write(json_schema())


def main(*arguments: str) -> None:
    """Entry point of the command: the process's own arguments, after these."""
    try:
        own_process()
        with quiet_stderr() as shown, redirect_stderr(shown):
            app([*arguments, *sys.argv[1:]], prog_name="transfer")
    except SystemExit as end:
        if "tensorflow" not in sys.modules or not isinstance(end.code, int | None):
            raise
        _end_at_once(end.code or 0)


def _end_at_once(code: int) -> NoReturn:
    """End the process without freeing what TensorFlow and Keras hold, object by object: that takes a second."""
    # Those of Ray, and of pools of processes.
    atexit._run_exitfuncs()  # noqa: SLF001 - Python has no public way
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
