"""A sweep as one HTML page, in the style of a run's report: the winner, all trials, and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from transfer.catalog import layout
from transfer.evaluation.metrics import Interval
from transfer.reports.templates import page_environment
from transfer.runtime.numbers import percent
from transfer.tuning import charts
from transfer.tuning.records import (
    SweepResult,
    TrialRecord,
    best_first,
    depth_text,
    is_better,
    keys_of,
    metric_text,
    short_names,
    value_text,
)

# Number of a table's rows that are shown; the others are in a part that opens on a click.
_OPEN_ROWS = 40


@dataclass(frozen=True)
class TrialRow:
    """One trial in the table. `flops_share`: its share of all multiply-adds of the sweep; None if none are known."""

    record: TrialRecord
    values: tuple[str, ...]
    value: str
    interval: Interval | None
    seconds_share: float
    flops_share: float | None
    href: str | None


@dataclass(frozen=True)
class DepthRow:
    """All trials of one unfreeze depth together. Shares refer to the whole sweep."""

    name: str
    color: str
    trials: int
    packed: int
    best: str
    seconds: float
    seconds_share: float
    flops_share: float | None


def render(result: SweepResult, *, root: str = "../../..") -> str:
    """One self-contained HTML page, without scripts, that loads nothing. The same result has the same text.

    `root`: relative path from the page to the beginning of storage. The default fits the page's place in storage.
    """
    trials = best_first(result.trials, result.metric)
    ended = [trial for trial in trials if trial.value is not None]
    winner = next((trial for trial in trials if trial.number == result.winner), None)
    keys = keys_of(trial.values for trial in result.trials)
    colors = charts.depth_colors(trials)
    rows = _rows(result, trials, keys, root=root)
    interval = result.interval(winner) if winner else None
    return (
        page_environment("tuning")
        .get_template("sweep.html.j2")
        .render(
            result=result,
            winner=winner,
            headline=_headline(result, winner),
            interval=interval,
            beside=_beside(winner, ended, interval),
            winner_values=[(key, value_text(value)) for key, value in winner.values.items()] if winner else [],
            winner_href=_href(winner, root) if winner else None,
            best=metric_text(winner.value, result.metric) if winner else None,
            behind=_behind(winner, ended, result.metric),
            middle=_middle(ended, result.metric),
            counts=result.counts,
            names=[(key, name) for key, name in short_names(keys).items()],
            packed=any(trial.packed_with > 1 for trial in trials),
            depths=_depths(rows, result.metric, colors),
            coordinates=_drawn(charts.parallel_coordinates(trials, keys, result.metric, winner=result.winner))
            if trials and keys
            else None,
            rate_charts=[
                (key, _drawn(charts.rate_chart(trials, key, result.metric, colors, winner=interval)))
                for key in keys
                if ended and charts.is_rate(key)
            ],
            cost=_drawn(charts.cost_chart(trials, result.metric, colors, winner=interval)) if ended else None,
            rows=rows,
            open_rows=_OPEN_ROWS,
        )
        .lstrip()
    )


def _headline(result: SweepResult, winner: TrialRecord | None) -> str:
    """The verdict, in one sentence."""
    if winner is None or winner.value is None:
        return "No trial has a result."
    if result.metric == "accuracy" and result.images:
        right = f"right for {round(winner.value * result.images):,} of {result.images:,}"
        return f"Trial {winner.number} wins: {right} {'held-out' if result.folds else 'validation'} images."
    value = metric_text(winner.value, result.metric)
    return f"Trial {winner.number} wins with a validation {result.metric} of {value}."


def _beside(winner: TrialRecord | None, ended: list[TrialRecord], interval: Interval | None) -> list[str]:
    """Sentences below the verdict: its interval, the number of trials within it, and how much to trust it."""
    said = []
    if winner and interval:
        text = f"The 95 % interval is {percent(interval.low)} to {percent(interval.high)}."
        others = [trial.value for trial in ended if trial.number != winner.number and trial.value is not None]
        if others:
            near = sum(interval.low <= value <= interval.high for value in others)
            text += (
                f" {near:,} of {len(others):,} other trials lie within it: they may be as good."
                if near
                else f" None of the {len(others):,} other trials lies within it."
            )
        said.append(text)
    if len(ended) > 1:
        said.append(
            f"As the best of {len(ended):,} on the same images it looks better than it is; the report of its run has "
            "its accuracy on the test split."
        )
    return said


def _rows(result: SweepResult, trials: list[TrialRecord], keys: list[str], *, root: str) -> list[TrialRow]:
    longest = max((trial.seconds for trial in trials), default=0.0)
    flops = sum(map(_trained, trials))
    return [
        TrialRow(
            record=trial,
            values=tuple(value_text(trial.values[key]) if key in trial.values else "" for key in keys),
            value=metric_text(trial.value, result.metric),
            interval=result.interval(trial),
            seconds_share=trial.seconds / longest if longest else 0.0,
            flops_share=_trained(trial) / flops if flops else None,
            href=_href(trial, root),
        )
        for trial in trials
    ]


def _depths(rows: list[TrialRow], metric: str, colors: dict[str, str]) -> list[DepthRow]:
    seconds = sum(row.record.seconds for row in rows) or 1.0
    found = []
    for depth, color in colors.items():
        of_depth = [row for row in rows if depth_text(row.record.depth) == depth]
        spent = sum(row.record.seconds for row in of_depth)
        known = [row.flops_share for row in of_depth if row.flops_share is not None]
        found.append(
            DepthRow(
                name=depth,
                color=charts.variable_of(color),
                trials=len(of_depth),
                packed=sum(row.record.packed_with > 1 for row in of_depth),
                best=metric_text(best_first([row.record for row in of_depth], metric)[0].value, metric),
                seconds=spent,
                seconds_share=spent / seconds,
                flops_share=sum(known) if known else None,
            )
        )
    return found


def _behind(winner: TrialRecord | None, ended: list[TrialRecord], metric: str) -> tuple[TrialRecord, str, str] | None:
    """The second best trial, its value, and its distance from the winner in words."""
    second = next((trial for trial in ended if winner and trial.number != winner.number), None)
    if not winner or not second or winner.value is None or second.value is None:
        return None
    gap = abs(winner.value - second.value)
    words = f"{100 * gap:.1f} points" if metric == "accuracy" else f"{gap:.4f}"
    # Only a trial that the scheduler stopped can have a better value than the winner.
    side = f"ahead when it was stopped {second.reason}" if is_better(second.value, winner.value, metric) else "behind"
    return second, metric_text(second.value, metric), f"{words} {side}" if gap else "equal"


def _middle(ended: list[TrialRecord], metric: str) -> tuple[str, str, str] | None:
    """The median of the trials' values, then the worse and the better quartile."""
    if len(ended) < 2:
        return None
    low, median, high = np.percentile([trial.value for trial in ended if trial.value is not None], [25, 50, 75])
    worse, better = (low, high) if metric == "accuracy" else (high, low)
    return metric_text(float(median), metric), metric_text(float(worse), metric), metric_text(float(better), metric)


def _trained(trial: TrialRecord) -> float:
    """Multiply-adds for one image over all epochs of the trial."""
    return trial.trained_flops * len(trial.rows)


def _href(trial: TrialRecord, root: str) -> str | None:
    """Link to a trial's run; None for a trial without a run of its own."""
    return f"{root}/{layout.run_start(quote(trial.run_id))}" if trial.run_id else None


def _drawn(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - matplotlib escapes the values and keys in it
