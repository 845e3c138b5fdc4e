"""The commands that start jobs; `nights`, which lists nights; `submit`, which starts a job on a cluster."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.cli.common import (
    GOES_ON,
    AsJson,
    ConfigPath,
    Overrides,
    Promote,
    end_with,
    load,
    opened,
    run,
    with_promote,
)
from transfer.errors import ConfigError, DatasetError, ExitCode
from transfer.runtime.numbers import percent

if TYPE_CHECKING:
    from transfer.registry.predict import PredictOutcome
    from transfer.submission.submit import Submission

jobs_app = typer.Typer()
RunId = Annotated[str, typer.Option("--run-id", help="Id of the run, which `transfer train` prints.")]


@jobs_app.command()
def ingest(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Bring images into storage as an immutable dataset version."""

    def work() -> dict[str, Any]:
        from transfer import jobs

        dataset = jobs.ingest(load(config, overrides))
        return {
            "dataset": dataset.reference,
            "classes": dataset.classes,
            "images": {split: dataset.rows(split) for split in ("train", "validation", "test")},
            "rejected": dataset.reject_counts,
            "rejects": dataset.rejects,
        }

    run(work, json, interrupted=GOES_ON)


@jobs_app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Id for the run, instead of the usual one.")] = None,
    promote: Promote = None,
    json: AsJson = False,
) -> None:
    """Ingest, train, evaluate, publish and perhaps promote. Repeat the command to continue an interrupted run."""

    def work() -> dict[str, Any]:
        from transfer import jobs
        from transfer.cli import summary

        outcome = jobs.train(load(config, with_promote(overrides, promote)), run_id=run_id)
        return summary.for_programs(outcome) if json else summary.for_people(outcome)

    run(work, json, interrupted=GOES_ON)


@jobs_app.command()
def evaluate(
    config: ConfigPath,
    run_id: RunId,
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test. Default: test.")] = None,
    json: AsJson = False,
) -> None:
    """Evaluate a finished run on held-out images and write its report."""

    def work() -> dict[str, Any]:
        from transfer import jobs

        report, uri = jobs.evaluate(load(config, overrides), run_id=run_id, split=split)
        metrics = report.metrics
        about: dict[str, Any] = {"run": run_id, "split": report.split, "accuracy": metrics.accuracy}
        about |= {"loss": metrics.loss, "report": uri}
        if json:
            return about
        beside = report.serving.text if report.serving else None
        return about | {"accuracy": percent(metrics.accuracy), "against what served": beside}

    run(work, json, interrupted=GOES_ON)


@jobs_app.command()
def publish(
    config: ConfigPath,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Id of the run, which `transfer train` prints.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Instead of a run: `base` as it was pretrained, with its own classes.")
    ] = False,
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="Publish a new version even if the run has one.")] = False,
    promote: Promote = None,
    json: AsJson = False,
) -> None:
    """Export an evaluated run or a pretrained classifier, check that the export predicts the same, and publish it."""

    def work() -> dict[str, Any]:
        from transfer import jobs
        from transfer.cli import summary

        if (run_id is None) != pretrained or (pretrained and again):
            raise ConfigError("Give either --run-id RUN, with or without --again, or --pretrained.")
        loaded = load(config, with_promote(overrides, promote))
        if run_id is None:
            what, choice = {"network": loaded.base.model}, jobs.publish_pretrained(loaded)
        else:
            what, choice = {"run": run_id}, jobs.publish(loaded, run_id=run_id, again=again)
        return {**what, **(summary.version_for_programs(choice) if json else summary.version_for_people(choice))}

    run(work, json, interrupted=GOES_ON)


@jobs_app.command()
def sweep(config: ConfigPath, overrides: Overrides = None, promote: Promote = None, json: AsJson = False) -> None:
    """Search the space in section `sweep`, and publish the winner. Repeat the command to continue a sweep."""

    def work() -> dict[str, Any]:
        from transfer import jobs
        from transfer.cli import summary
        from transfer.tuning.records import metric_text

        outcome, won = jobs.sweep(load(config, with_promote(overrides, promote)))
        result, winner = outcome.result, outcome.winner
        searched = {
            "sweep": result.id,
            "trials": result.counts,
            "ended_because": result.ended_by,
            "winner": winner.values,
        }
        if json:
            found = {f"validation {result.metric}": winner.value, "page": outcome.page_uri}
            return searched | found | summary.for_programs(won)
        won_with = f"validation {result.metric} {metric_text(winner.value, result.metric)}"
        return searched | {"won with": won_with, "page": outcome.page_uri} | summary.for_people(won)

    run(work, json, interrupted=GOES_ON)


@jobs_app.command("lr-find")
def lr_find(
    config: ConfigPath,
    overrides: Overrides = None,
    phase: Annotated[int, typer.Option(help="Number of the phase, from 0.")] = 0,
    low: Annotated[float, typer.Option("--from", help="Learning rate of the first step.")] = 1e-7,
    high: Annotated[float, typer.Option("--to", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Number of steps, of one batch each.")] = 200,
    json: AsJson = False,
) -> None:
    """Suggest a learning rate for a phase, from a test with increasing rates. Changes no run and no model."""

    def work() -> dict[str, Any]:
        from transfer import jobs

        loaded = load(config, overrides)
        found, page = jobs.lr_find(loaded, phase=phase, low=low, high=high, steps=steps)
        answer = {"dataset": found.dataset, "phase": phase, "unfreeze": found.unfreeze, "optimizer": found.optimizer}
        rates = {"suggestion": found.suggestion, "tenth_of_minimum": found.tenth_of_minimum}
        curve = found.curve
        answer |= rates if json else {name: f"{rate:.1e}" for name, rate in rates.items()}
        answer |= {"set": found.setting, "steps": len(curve.rates), "diverged": curve.diverged, "page": page}
        return answer | ({"rates": curve.rates, "losses": curve.losses} if json else {})

    run(work, json, interrupted=GOES_ON)


@jobs_app.command()
def nightly(
    config: ConfigPath,
    overrides: Overrides = None,
    tell_apart: Annotated[
        bool, typer.Option("--tell-apart", help="Exit with 12 if the champion stays, and with 13 if nothing is new.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Ingest new images, check them, train, and promote a better model. Repeat the command to continue a night.

    Exit codes: 0 promoted, champion kept or nothing new; 10 another process works on the night; 11 the data was
    refused; others as for `transfer train`.
    """
    outcomes = []

    def work() -> dict[str, Any]:
        from transfer import jobs
        from transfer.nights.message import for_people, message_of
        from transfer.registry.promote import read_serving
        from transfer.storage import open_store

        loaded = load(config, overrides)
        night, page = jobs.nightly(loaded)
        outcomes.append(night.outcome)
        if json:
            return message_of(night, page=page)
        return for_people(night, serving=read_serving(open_store(loaded.storage), loaded.name), page=page)

    run(work, json, interrupted=GOES_ON)
    codes = {"refused": ExitCode.NIGHT_REFUSED}
    if tell_apart:
        codes |= {"kept": ExitCode.NIGHT_KEPT, "nothing new": ExitCode.NIGHT_NOTHING_NEW}
    sys.exit(codes.get(outcomes[0], ExitCode.DONE))


@jobs_app.command()
def nights(
    config: ConfigPath,
    overrides: Overrides = None,
    last: Annotated[int, typer.Option(min=1, help="Number of nights.")] = 14,
    json: AsJson = False,
) -> None:
    """List the latest nights, with outcomes and reasons."""

    def work() -> dict[str, Any]:
        from transfer.nights.records import list_nights

        loaded, store = opened(config, overrides)
        rows = []
        for night in islice(list_nights(store, loaded.name), last):
            standing = night.standing()
            row: dict[str, Any] = {"night": night.number, "started": night.started}
            row |= {"outcome": standing.outcome, "reason": standing.reason}
            rows.append(row | ({"page": night.page_uri()} if json else {}))
        return {"model": loaded.name, "nights": rows}

    run(work, json)


@jobs_app.command()
def predict(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML configuration.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Instead of a configuration: a pretrained network as it is, such as EfficientNetLite0."
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="An image, folder, s3:// prefix, list or table of images; may be given several times."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of images: a dataset version, NAME or NAME@NUMBER.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the dataset version: train, validation or test. Default: all.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="File to write, .parquet, .csv or .jsonl, or a folder of parts, which ends with /; a path or s3://. "
            "Default: few images are printed."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Write so many most probable classes, instead of all probabilities.")
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write the features of the base, too, in half precision.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output where it exists.")] = False,
    overrides: Overrides = None,
    version: Annotated[int | None, typer.Option(help="Version to use. Default: the promoted one.")] = None,
    json: AsJson = False,
) -> None:
    """Predict images with the published model, or with a pretrained network as it is."""
    outcomes: list[PredictOutcome] = []

    def work() -> dict[str, Any]:
        from transfer import jobs

        options: dict[str, Any] = {"images": images or (), "output": output, "overwrite": overwrite}
        options |= {"top_k": top_k, "embeddings": embeddings}
        of_storage: dict[str, Any] = {"dataset": dataset, "split": split, "version": version}
        if config is not None and model is None:
            done = jobs.predict(load(config, overrides), **options, **of_storage)
        elif config is None and model is not None and not any(of_storage.values()):
            done = jobs.predict_pretrained(model, overrides or (), **options)
        else:
            raise ConfigError(
                "Give either a configuration or --model.",
                advice="--dataset, --split and --version belong to a configuration.",
            )
        outcomes.append(done)
        if json:
            return vars(done)
        answer: dict[str, Any] = {"version": done.version, "images": done.images, "output": done.output}
        answer["failed"] = f"{done.errors:,} of {done.images:,} images" if done.errors else None
        if done.from_features:
            answer["from cached features"] = f"{done.from_features:,} images"
        if done.predictions is not None:
            answer["predictions"] = [_in_short(row, errors=done.errors > 0) for row in done.predictions]
        return answer

    run(work, json)
    (done,) = outcomes
    if done.errors == done.images:
        end_with(
            DatasetError(
                f"None of the images could be answered: {done.errors:,} of {done.images:,} failed.",
                advice="The column `error` of each says why.",
            )
        )


def _in_short(row: dict[str, Any], *, errors: bool) -> dict[str, Any]:
    """A prediction as one row. `errors`: whether the table has a column of errors."""
    confidence = percent(row["confidence"]) if row["error"] is None else ""
    shown = {"path": row["key"], "class": row["class_name"] or "", "confidence": confidence}
    return shown | ({"error": row["error"] or ""} if errors else {})


@jobs_app.command()
def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name of a module in jobs/, such as `train`.")],
    config: ConfigPath,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="Further arguments of the job, after `--`.")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the cluster, such as http://HEAD:8265. Default: RAY_ADDRESS.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="Part of the job's id. Another value makes another job, for example each night."),
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to ship. Default: this folder if it has `jobs`, else only the configuration."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")] = True,
    json: AsJson = False,
) -> None:
    """Run a job on a Ray cluster and follow it. Repeat the command to follow the same job again."""
    ended: list[Submission] = []

    def work() -> dict[str, Any]:
        from transfer.submission import submit as submission

        answer = submission.submit(
            job,
            config,
            address=address,
            overrides=overrides or [],
            arguments=arguments or [],
            id=name,
            root=working_dir,
            wait=wait,
            write=_to_stderr,
        )
        ended.append(answer)
        return {
            "job": answer.id,
            "submitted": not answer.found,
            "status": answer.status,
            "message": answer.message,
            "exit_code": answer.exit_code,
        }

    run(work, json, interrupted="The job itself goes on: the same command follows it again")
    sys.exit(ended[0].exit_code)


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
