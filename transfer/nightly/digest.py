"""A night in a few words: what a terminal, a scheduler's log and a webhook are told."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any

from tenacity import retry, stop_after_attempt, wait_exponential

from transfer.config import NightlyConfig
from transfer.nightly.summary import NightSummary

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_TIMEOUT_S = 10.0


def digest_of(summary: NightSummary, *, page: str | None) -> dict[str, Any]:
    """The figures that people ask for first; `page` is where the rest is."""
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


def send(told: dict[str, Any], config: NightlyConfig) -> None:
    """Send a night's digest as JSON to the configured webhook. That it fails is logged, and fails nothing else."""
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
        # The URL is a secret, and an error's text may hold it.
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
