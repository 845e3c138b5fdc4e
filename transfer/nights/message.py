"""A summary of a night in words, for the terminal, the log of a scheduler, and the webhook."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any

from tenacity import retry, stop_after_attempt, wait_exponential

from transfer.config import NightlyConfig
from transfer.dataset.manifest import rejects_text
from transfer.nights.summary import DataChange, NightSummary
from transfer.registry.comparison import Comparison
from transfer.registry.promote import Serving
from transfer.runtime.numbers import duration, many, p_text, percent, points

logger = logging.getLogger(__name__)

_KEYS_SHOWN = 5
# Attempts and timeout of the request to the webhook.
_ATTEMPTS = 3
_TIMEOUT_S = 10.0


def seconds(summary: NightSummary) -> float:
    """Duration of all steps together, in seconds of wall clock."""
    return sum(step.seconds for step in summary.steps)


def refused(change: DataChange) -> str:
    """Number of files that ingest refused, reasons, and the object that lists them; without a full stop."""
    if not change.rejects:
        return f"{many(change.rejected, 'file')} refused"
    return f"{rejects_text(change.rejects)}; listed in {change.ledger}"


def headline(summary: NightSummary) -> str:
    """Outcome of the night in one sentence."""
    challenger, champion = f"Version {summary.challenger}", summary.champion
    match summary.outcome:
        case "promoted":
            return f"{challenger} serves now, " + (
                "the first one." if champion is None else f"instead of version {champion}."
            )
        case "kept":
            return f"{challenger} was not promoted" + ("." if champion is None else f" over version {champion}.")
        case "nothing new":
            return "There was nothing new."
        case "refused":
            return "The new data was refused, and nothing was trained on it."
        case "failed":
            return "The night failed."


def verdict(comparison: Comparison) -> str:
    """Number of images that the challenger, the champion and the commonest class get right."""
    metrics, champion = comparison.challenger.metrics, comparison.champion
    interval = metrics.accuracy_interval
    beside = f"version {champion.version} is right for {champion.metrics.right:,}, and " if champion else ""
    return (
        f"Version {comparison.challenger.version} is right for {metrics.right:,} of "
        f"{many(comparison.images, 'held-out image')} (95 % interval {percent(interval.low)} to "
        f"{percent(interval.high)}); {beside}always answering {metrics.commonest_class.name} would be right for "
        f"{metrics.commonest_class.support:,}."
    )


def other_settings(summary: NightSummary) -> str | None:
    """A sentence with the settings in which the night differs from the champion's training; None if there are none."""
    keys = summary.other_settings
    if not keys:
        return None
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return (
        "The night trains with the file's settings; the champion was trained with other values of "
        f"{', '.join(keys[:_KEYS_SHOWN])}{more}."
    )


def why(summary: NightSummary) -> str:
    """The reason of the outcome. For a promotion, the number of rules is enough, because the rules are shown, too."""
    if summary.outcome == "promoted" and summary.decision is not None:
        rules = len(summary.decision.rules)
        return f"The challenger passed all rules of the gate, {rules} of {rules}."
    return summary.reason


def message_of(summary: NightSummary, *, page: str | None) -> dict[str, Any]:
    """The main figures of a night, with JSON types only. `page`: address of the page."""
    compared, change = summary.comparison, summary.change
    champion = compared.champion if compared else None
    return {
        "model": summary.name,
        "night": summary.night,
        "outcome": summary.outcome,
        "reason": summary.reason,
        "dataset": summary.dataset,
        "images": {"all": change.images, "new": change.new, "gone": change.gone} if change else None,
        "run": summary.run,
        "champion": summary.champion,
        "challenger": summary.challenger,
        "promotion": summary.promotion,
        "accuracy": {
            "champion": champion.metrics.accuracy if champion else None,
            "challenger": compared.challenger.metrics.accuracy,
            "images": compared.images,
        }
        if compared
        else None,
        "warnings": [finding.text for finding in summary.findings if not finding.passed],
        "seconds": {step.name: step.seconds for step in summary.steps},
        "page": page,
    }


def for_people(summary: NightSummary, *, serving: Serving, page: str) -> dict[str, str | None]:
    """The main figures for a terminal, one line for each name. `serving`: the promotion in force."""
    change = summary.change
    lines = {
        "night": f"{summary.night} of {summary.name}",
        "outcome": summary.outcome,
        "why": why(summary),
        "settings": other_settings(summary),
        "new version": None if summary.challenger is None else f"{summary.challenger}, of run {summary.run}",
        "what serves": f"{serving.text}.",
        "data": _data_line(summary),
        "new classes": _new_classes_line(change),
        "refused": f"{refused(change)}." if change and change.rejected else None,
        "checks": _checks_line(summary),
        "accuracy": _accuracy_line(summary.comparison),
        "gate": _gate_line(summary),
        "took": _took_line(summary),
        "page": page,
    }
    # The text of a check or an error may contain line breaks.
    return {name: text and " ".join(text.split()) for name, text in lines.items()}


def send(told: dict[str, Any], config: NightlyConfig) -> None:
    """Send the result of `message_of` as JSON to the configured webhook. A failure is only logged."""
    if config.webhook_env is None:
        return
    url = os.environ.get(config.webhook_env, "")
    if not url.startswith(("https://", "http://")):
        logger.warning(
            "Nothing was sent: the environment variable %s holds no http(s) URL.",
            config.webhook_env,
        )
        return
    try:
        _post(url, json.dumps(told).encode())
    except OSError as error:
        # The URL is a secret, and the text of an error may contain it.
        logger.warning("The webhook in %s did not take the night: %s.", config.webhook_env, type(error).__name__)


@retry(stop=stop_after_attempt(_ATTEMPTS), wait=wait_exponential(multiplier=0.5, max=5), reraise=True)
def _post(url: str, data: bytes) -> None:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})  # noqa: S310 - checked
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - checked by `send`
            answer.read(1)
    except urllib.error.HTTPError as refusal:
        refusal.close()  # it holds the connection
        raise


def _data_line(summary: NightSummary) -> str | None:
    change = summary.change
    if change is None:
        return summary.dataset
    return f"{change.now}: {many(change.images, 'image')}, {change.new:,} new, {change.gone:,} gone"


def _new_classes_line(change: DataChange | None) -> str | None:
    new = change.new_classes if change else []
    return ", ".join(f"{each.name} ({many(each.new, 'image')})" for each in new) or None


def _checks_line(summary: NightSummary) -> str | None:
    if not summary.findings:
        return None
    asked = [finding for finding in summary.findings if finding.found is not None]
    failed = [finding for finding in asked if not finding.passed]
    passed = f"{len(asked) - len(failed)} of {len(asked)} passed"
    not_asked = len(summary.findings) - len(asked)
    return (
        passed
        + (f", {not_asked} skipped" if not_asked else "")
        + "".join(f"; {finding.action}: {finding.check}" for finding in failed)
    )


def _accuracy_line(comparison: Comparison | None) -> str | None:
    if comparison is None:
        return None
    ours = f"{percent(comparison.challenger.metrics.accuracy)} on {many(comparison.images, 'held-out image')}"
    if comparison.champion is None or comparison.interval is None or comparison.p_value is None:
        return ours
    return (
        f"{ours}, the champion's is {percent(comparison.champion.metrics.accuracy)}: "
        f"{points(comparison.difference or 0.0)} ({points(comparison.interval.low)} to "
        f"{points(comparison.interval.high)}), {p_text(comparison.p_value)}"
    )


def _gate_line(summary: NightSummary) -> str | None:
    if summary.decision is None:
        return None
    rules = summary.decision.rules
    failed = [rule.name for rule in rules if not rule.passed]
    return f"{len(rules) - len(failed)} of {len(rules)} rules passed" + (
        f"; failed: {', '.join(failed)}" if failed else ""
    )


def _took_line(summary: NightSummary) -> str:
    longest = sorted(summary.steps, key=lambda step: -step.seconds)[:3]
    steps = ", ".join(f"{step.name} {duration(step.seconds)}" for step in longest)
    return duration(seconds(summary)) + (f", most of it: {steps}" if steps else "")
