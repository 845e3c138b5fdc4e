"""The commands `transfer sweep` and `transfer lr-find`: what helps to choose a configuration."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from transfer.cli_common import AsJson, ConfigPath, Overrides, load, run

tuning_app = typer.Typer()


@tuning_app.command()
def sweep(config: ConfigPath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Search the space in section `sweep`, and publish what wins. Repeat it to go on with an interrupted sweep."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        outcome, won = pipeline.sweep(load(config, overrides))
        result, winner = outcome.result, outcome.winner
        return {
            "sweep": result.id,
            "dataset": result.dataset,
            "trials": result.counts,
            "ended because": result.ended_by,
            "winner": winner.values,
            f"validation {result.metric}": winner.value,
            "run": won.run.id,
            "split": won.report.split,
            "accuracy": won.report.metrics.accuracy,
            "loss": won.report.metrics.loss,
            "page": outcome.page_uri,
            "report": won.report_uri,
            "version": won.version.number if won.version else None,
            "model": f"{won.run.store.uri}/{won.version.folder}" if won.version else None,
        }

    run(work, json)


@tuning_app.command("lr-find")
def lr_find(
    config: ConfigPath,
    overrides: Overrides = None,
    phase: Annotated[int, typer.Option(help="Which phase, counted from 1.")] = 1,
    low: Annotated[float, typer.Option("--from", help="Learning rate of the first step.")] = 1e-7,
    high: Annotated[float, typer.Option("--to", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps; one batch each.")] = 200,
    json: AsJson = False,
) -> None:
    """Suggest a learning rate for a phase: a few steps at rising rates. Changes no run and no model."""

    def work() -> dict[str, Any]:
        from transfer import pipeline

        loaded = load(config, overrides)
        found, page = pipeline.lr_find(loaded, phase=phase - 1, low=low, high=high, steps=steps)
        answer = {"dataset": found.dataset, "phase": phase, "unfreeze": found.unfreeze, "optimizer": found.optimizer}
        rates = {"suggestion": found.suggestion, "tenth_of_minimum": found.tenth_of_minimum}
        curve = found.curve
        answer |= rates if json else {name: f"{rate:.1e}" for name, rate in rates.items()}
        answer |= {"set": found.setting, "steps": len(curve.rates), "diverged": curve.diverged, "page": page}
        return answer | ({"rates": curve.rates, "losses": curve.losses} if json else {})

    run(work, json)
