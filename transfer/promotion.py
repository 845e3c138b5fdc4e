"""Whether a version that a job published serves: `publish.promote` decides, unless a later promotion did.

Nights ask the gate here, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.ensure import compared
from transfer.errors import PromotionConflictError
from transfer.evaluation.metrics import beats_commonest_class
from transfer.evaluation.report import Report
from transfer.registry.comparison import Comparison
from transfer.registry.describe import record_refusal
from transfer.registry.gate import Decision, decide
from transfer.registry.promote import Serving, complete_serving_folder, promote, read_serving
from transfer.reports.thumbnails import Thumbnail
from transfer.storage import Store
from transfer.training.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a challenger. `evidence`: for the log of promotions, or of refusals.

    `thumbnails`: of images that one version has right and the other wrong, by their SHA-256.
    """

    comparison: Comparison
    decision: Decision
    evidence: dict[str, Any]
    thumbnails: Mapping[str, Thumbnail]


def judge(run: Run, challenger: ModelVersion, *, champion: int | None, asked_by: dict[str, Any]) -> Judgement:
    """Compare a run's version with the one that serves, and ask the gate of the run's configuration.

    Args:
        run: The run that the challenger was published from.
        challenger: The version that may serve.
        champion: Number of the version that serves; None where none does.
        asked_by: The night or the run that asks, for the evidence.

    Raises:
        DatasetError: There is no image to compare on.
        RegistryError: A version is damaged or removed.
    """
    comparison, thumbnails = compared(run, champion=champion, challenger=challenger.number)
    decision = decide(run.config.nightly.gate, comparison)
    return Judgement(comparison, decision, {**asked_by, **decision.model_dump(mode="json")}, thumbnails)


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
    return _carried_out(store, version, serving, _decide(run, version, report, serving, instead_of))


def choose_pretrained(config: Config, store: Store, version: ModelVersion) -> PromotionChoice:
    """Promote a pretrained classifier that was published as it is: with `always`, and with `first` if nothing serves.

    Args:
        config: Has `publish.promote`.
        store: Storage with the version.
        version: The version.

    Raises:
        RegistryError: The version is damaged.
        StorageError: Storage cannot be read or written.
    """
    serving = complete_serving_folder(store, version.model)
    if serving.version == version.number:
        return PromotionChoice(version, False, serving, _serves(serving), store.uri)
    choice = config.publish.promote
    reason = f"{config.base.model}, published as it was pretrained"
    if version.decided_on_since(serving.number):
        verdict = _decided_before(version)
    elif choice == "always" or (choice == "first" and serving.version is None):
        verdict = _Verdict(True, reason)
    else:
        verdict = _Verdict(
            False, f"publish.promote is `{choice}`{', and a version serves already' * (choice == 'first')}."
        )
    return _carried_out(store, version, serving, verdict)


def _carried_out(store: Store, version: ModelVersion, serving: Serving, verdict: _Verdict) -> PromotionChoice:
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
        return _decided_before(version)
    match run.config.publish.promote:
        case "never":
            return _Verdict(False, "publish.promote is `never`.")
        case "always":
            return _Verdict(True, f"published by run {run.id}")
        case "gate":
            return _ask_gate(run, version, serving)
        case "first":
            return _if_first(run, report, serving)


def _decided_before(version: ModelVersion) -> _Verdict:
    return _Verdict(
        False,
        f"it was published on {version.published_at}, before that was decided, and a job does not overrule a "
        f"later decision.",
    )


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
    judged = judge(run, version, champion=serving.version, asked_by={"run": run.id})
    decision = judged.decision
    if not decision.promote:
        return _Verdict(False, f"the gate refuses it. {decision.failed}", judged.evidence)
    passed = f"published by run {run.id}; the gate's {len(decision.rules)} rules are passed"
    return _Verdict(True, passed, judged.evidence)


def _serves(serving: Serving) -> str:
    return f"{serving.text} ({serving.promotion.reason})." if serving.promotion else f"{serving.text}."


def _waits(version: ModelVersion, serving: Serving, why: str) -> str:
    command = f"transfer registry promote CONFIG {version.number} --reason TEXT"
    return f"{_serves(serving)} Version {version.number} waits: {why} `{command}` makes it serve."
