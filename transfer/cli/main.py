"""The command `transfer`: all commands together, and `init`, `inspect`, `demo` and `config …`."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from transfer.cli.benchmark import benchmark_app
from transfer.cli.common import (
    GOES_ON,
    AsJson,
    ConfigPath,
    Overrides,
    errors_explained,
    load,
    run,
)
from transfer.cli.data import cache_app, datasets_app
from transfer.cli.forget import forget_app
from transfer.cli.jobs import jobs_app
from transfer.cli.registry import registry_app
from transfer.cli.runs import open_app, runs_app
from transfer.runtime.numbers import percent, points
from transfer.runtime.startup import import_tensorflow, own_process, quiet_stderr

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
app.add_typer(runs_app, name="runs")
app.add_typer(datasets_app, name="datasets")
app.add_typer(jobs_app)
app.add_typer(forget_app)
app.add_typer(open_app)
app.add_typer(benchmark_app)


@app.command()
def init(
    photos: Annotated[
        str,
        typer.Argument(metavar="PHOTOS", help="Class folders (a folder or an s3:// prefix), an archive or a table."),
    ],
    output: Annotated[Path, typer.Option(help="The configuration to write.")] = Path("config.yaml"),
    json: AsJson = False,
) -> None:
    """Look at a folder of images and write a configuration for it, with comments."""

    def work() -> dict[str, Any]:
        from transfer.starter import write_starter

        starter = write_starter(photos, output)
        return {
            "config": str(output),
            "model": starter.name if json else f"{starter.name}, after the folder's name (the key `name`)",
            "images": starter.images if json or starter.images is not None else "known when a job reads them",
            "classes": starter.classes if json or starter.classes is not None else "known when a job reads them",
            "next": f"transfer config check {output}",
        }

    run(work, json)


def _show_versions(asked: bool) -> None:
    if asked:
        from transfer.runtime.distribution import versions

        own, *rest = (f"{name} {version}" for name, version in versions().items())
        sys.stdout.write(f"{own} ({', '.join(rest)})\n")
        raise typer.Exit


@app.callback()
def _own_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_versions, is_eager=True, help="Show the versions of transfer and its libraries."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def _image_size(text: str) -> int | list[int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(
            f"`{text}` must be a side, as in 224, or HEIGHTxWIDTH, as in 160x224.", param_hint="--image-size"
        )
    return int(text) if len(sides) == 1 else [int(side) for side in sides]


@app.command()
def inspect(
    network: Annotated[str, typer.Argument(metavar="CONFIG|NETWORK", help="A configuration, or a network's name.")],
    overrides: Overrides = None,
    image_size: Annotated[
        str, typer.Option(metavar="SIDE|HEIGHTxWIDTH", help="Size of the images in pixels, if NETWORK is a name.")
    ] = "224",
    json: AsJson = False,
) -> None:
    """List a network's blocks: the layers that each `unfreeze` depth trains, and their cost."""

    def work() -> dict[str, Any]:
        import_tensorflow()

        from transfer.backbone.load import describe, load_backbone
        from transfer.config import BaseNetworkConfig
        from transfer.errors import ClassifierBaseError

        storage = None
        if network.endswith((".yaml", ".yml")):
            loaded = load(Path(network), overrides)
            base, storage = loaded.base, loaded.storage
        else:
            # The blocks do not depend on the weights, and random weights need no download.
            base = BaseNetworkConfig(model=network, weights="none", image_size=_image_size(image_size))
        warning = None
        try:
            backbone = load_backbone(base, storage=storage)
        except ClassifierBaseError as refusal:
            # The blocks of a classifier are listed, too, because users choose the layer to tap from them.
            warning = str(refusal)
            backbone = load_backbone(base.model_copy(update={"accept_head": True}), storage=storage)
        rows = describe(backbone)
        return {
            "network": base.model,
            "warning": warning,
            "blocks": rows if json else _for_people(rows),
        }

    run(work, json)


def _for_people(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a block: the cost of training from here on, and the size of the cached features of one image below.

    Also what a rank of LoRA adds in the block, where any block can have adapters.
    """
    lora = [name for name in ("attention", "dense") if any(row[f"lora_{name}"] for row in rows)]
    return [
        {
            "unfreeze": row["depth"],
            "block": row["block"],
            "layers": len(row["layers"]),
            "parameters": row["parameters"],
            **{f"LoRA {name} a rank": row[f"lora_{name}"] for name in lora},
            "share of FLOPs": percent(row["flops_share"]),
            "trained share": percent(row["trained_flops_share"]),
            "output": " × ".join(map(str, row["output_shape"])),
            "output bytes": row["feature_bytes"],
            "cached bytes": row["cached_bytes"],
        }
        for row in rows
    ]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("demo-output"),
    json: AsJson = False,
) -> None:
    """Train, publish and reload a model on real handwritten digits, offline, in a few minutes."""

    def work() -> dict[str, Any]:
        from transfer.demo.demo import run_demo

        answer = run_demo(output)
        if json:
            return answer
        in_words = {name: percent(answer[name]) for name in ("accuracy", "accuracy from scratch")}
        return answer | in_words | {"gained by transfer": points(answer["gained by transfer"])}

    run(work, json, interrupted=GOES_ON)


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Check a configuration, its sweep, storage, source, weights and unfreeze depths. Show what a job would do."""

    def work() -> dict[str, Any]:
        from transfer import jobs
        from transfer.overview import for_people

        loaded = load(config, overrides)
        found = jobs.preview(loaded)
        about = {"config": str(config), "valid": True, "storage": loaded.storage.uri}
        return {**about, **(found if json else for_people(found, loaded))}

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
    """Entry point of the command: these arguments, then those of the process."""
    try:
        own_process()
        with quiet_stderr() as shown, redirect_stderr(shown):
            app([*arguments, *sys.argv[1:]], prog_name="transfer")
    except SystemExit as end:
        if "tensorflow" not in sys.modules or not isinstance(end.code, int | None):
            raise
        _end_at_once(end.code or 0)


def _end_at_once(code: int) -> NoReturn:
    """End the process at once: freeing the objects of TensorFlow and Keras one by one takes a second."""
    # The exit handlers of Ray and of process pools.
    atexit._run_exitfuncs()  # noqa: SLF001 - Python has no public way
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
