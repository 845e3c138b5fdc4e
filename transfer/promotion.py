"""Whether a version that a job published serves: `publish.promote` decides, unless a later promotion did."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from transfer.catalog.model import ModelVersion
from transfer.ensure import compared
from transfer.errors import PromotionConflictError
from transfer.evaluation.metrics import beats_commonest_class
from transfer.evaluation.report import Report
from transfer.registry.describe import record_refusal
from transfer.registry.gate import decide
from transfer.registry.serving import Serving, complete_serving_folder, promote, read_serving
from transfer.training.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromotionChoice:
    """The outcome for a published version.

    `promoted`: whether this call promoted it. `serving`: what serves afterwards. `why`: the reason, in sentences.
    `storage`: address of the storage.
    """

    version: ModelVersion
    promoted: bool
    serving: Serving
    why: str
    storage: str


def choose(
    run: Run, version: ModelVersion, report: Report, *, instead_of: ModelVersion | None = None
) -> PromotionChoice:
    """Promote a run's version as the configuration says, unless what serves was decided after its publication.

    Args:
        run: The run; its configuration has `publish.promote`, and the gate's limits.
        version: The version that was published from it.
        report: The report that the version was published with.
        instead_of: If this version serves, the new one replaces it, whatever `publish.promote` says.

    Raises:
        RegistryError: A version is damaged.
        StorageError: Storage cannot be read or written.
    """
    store = run.store
    serving = complete_serving_folder(store, version.model)
    if serving.version == version.number:
        return PromotionChoice(version, False, serving, _serves(serving), store.uri)
    verdict = _decide(run, version, report, serving, instead_of)
    if not verdict.promote:
        if verdict.evidence is not None:
            record_refusal(store, version, champion=serving.version, evidence=verdict.evidence)
        return PromotionChoice(version, False, serving, _waits(version, serving, verdict.why), store.uri)
    try:
        promote(store, version, reason=verdict.why, after=serving.number, evidence=verdict.evidence)
    except PromotionConflictError:
        now = read_serving(store, version.model)
        why = _waits(version, now, "another one was promoted at the same time.")
        return PromotionChoice(version, False, now, why, store.uri)
    now = read_serving(store, version.model)
    before = " Nothing served before." if serving.version is None else ""
    return PromotionChoice(version, True, now, f"{now.text}.{before}", store.uri)


@dataclass(frozen=True)
class _Verdict:
    """Whether to promote, with the reason for the promotion log; or what the version waits for, in a sentence.

    `evidence`: the gate's rules and figures.
    """

    promote: bool
    why: str
    evidence: dict[str, Any] | None = None


def _decide(
    run: Run, version: ModelVersion, report: Report, serving: Serving, instead_of: ModelVersion | None
) -> _Verdict:
    if instead_of is not None:
        return _take_the_place(serving, instead_of)
    if version.decided_on_since(serving.number):
        return _Verdict(
            False,
            f"it was published on {version.published_at}, before that was decided, and a job does not overrule a "
            f"later decision.",
        )
    match run.config.publish.promote:
        case "never":
            return _Verdict(False, "publish.promote is `never`.")
        case "always":
            return _Verdict(True, f"published by run {run.id}")
        case "gate":
            return _ask_gate(run, version, serving)
        case "first":
            return _if_first(run, report, serving)


def _take_the_place(serving: Serving, instead_of: ModelVersion) -> _Verdict:
    if serving.version == instead_of.number:
        return _Verdict(True, f"published again, instead of version {instead_of.number}")
    return _Verdict(False, f"version {instead_of.number}, whose place it takes, does not serve.")


def _if_first(run: Run, report: Report, serving: Serving) -> _Verdict:
    if serving.version is not None:
        return _Verdict(False, "publish.promote is `first`, and a version serves already.")
    if not beats_commonest_class(report.metrics):
        why = "no better than always answering the commonest class."
        rule = {"name": "commonest_class", "passed": False, "text": f"It is {why}"}
        return _Verdict(False, f"it is {why}", {"run": run.id, "promote": False, "rules": [rule]})
    return _Verdict(True, f"published by run {run.id}, the first to serve")


def _ask_gate(run: Run, version: ModelVersion, serving: Serving) -> _Verdict:
    comparison, _ = compared(run, champion=serving.version, challenger=version.number)
    decision = decide(run.config.nightly.gate, comparison)
    evidence = {"run": run.id, **decision.model_dump(mode="json")}
    if not decision.promote:
        failed = " ".join(rule.text for rule in decision.rules if not rule.passed)
        return _Verdict(False, f"the gate refuses it. {failed}", evidence)
    return _Verdict(True, f"published by run {run.id}; the gate's {len(decision.rules)} rules are passed", evidence)


def _serves(serving: Serving) -> str:
    return f"{serving.text} ({serving.promotion.reason})." if serving.promotion else f"{serving.text}."


def _waits(version: ModelVersion, serving: Serving, why: str) -> str:
    command = f"transfer registry promote CONFIG {version.number} --reason TEXT"
    return f"{_serves(serving)} Version {version.number} waits: {why} `{command}` makes it serve."
