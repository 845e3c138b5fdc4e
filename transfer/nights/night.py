"""A night, from the ingest of new data to the promotion.

Each step finds its result if it was done before, so a process that repeats an interrupted night resumes it. Durable
steps that two processes could do are decided by put-if-absent: the plan of the night, the promotion, the night's end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transfer.catalog.model import ModelVersion
from transfer.config import Config, Decides, deciding
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.ensure import ensure_dataset, evaluated, fit, published, read_report, writable_storage
from transfer.errors import (
    BaseChangedError,
    ConfigError,
    CorruptObjectError,
    NightBusyError,
    ObjectNotFoundError,
    PromotionConflictError,
    TransferError,
)
from transfer.evaluation.report import spent_of
from transfer.maintenance.old_runs import remove_old_nights
from transfer.nights.claim import HeldClaim
from transfer.nights.data_checks import check_change, look_at_new, refusals
from transfer.nights.dataset_diff import data_change
from transfer.nights.message import message_of, send
from transfer.nights.records import Night, NightPlan, earlier_summaries, judged_by, work_on_night
from transfer.nights.summary import Finding, NightSummary, Outcome, Step
from transfer.preflight import check_source_and_files
from transfer.promotion import judge
from transfer.registry.describe import record_refusal, trained_on
from transfer.registry.promote import complete_serving_folder, promote, read_serving
from transfer.registry.versions import load_version
from transfer.storage import Store, now_utc
from transfer.training.rows import held_out_but_seen
from transfer.training.run import Run, differing_keys, identity, open_run, read_start, run_id_for

logger = logging.getLogger(__name__)

# Rules whose texts are the reason in the promotion log; its evidence has all rules.
_REASONS = {"better", "not_worse", "first"}
# Number of nights in the trend of the page. Each night costs a few reads.
_NIGHTS_SHOWN = 30


def run_night(config: Config) -> tuple[NightSummary, str]:
    """Work on the unfinished night, or else on the next one, to its end. Returns its summary and its page's address.

    Raises NightBusyError if another process works on it, ConfigError if the configuration does not publish. Any other
    error is recorded as the end of the night, and raised.
    """
    if not config.publish.enabled:
        raise ConfigError(
            "publish.enabled is false, and a night compares published models.",
            advice="Set it to true. publish.promote: never keeps a night from changing what serves.",
        )
    store = writable_storage(config)
    check_source_and_files(config)
    # A night or another job may have died between a promotion and its copy for servers.
    serving = complete_serving_folder(store, config.name)
    with work_on_night(store, config) as (night, claim):
        logger.info("Night %d of %s.", night.number, night.name)
        return _Work(config, store, night, claim, known={"champion": serving.version}).run()


class _EndedError(Exception):
    """The night ends before all steps are done."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(outcome, reason)
        self.outcome: Outcome = outcome
        self.reason = reason


@dataclass
class _Work:
    """A night in progress. `known`: fields of its summary so far."""

    config: Config
    store: Store
    night: Night
    claim: HeldClaim
    known: dict[str, Any] = field(default_factory=dict)
    thumbnails: Mapping[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def run(self) -> tuple[NightSummary, str]:
        try:
            outcome, reason = self._outcome()
        except _EndedError as ended:
            outcome, reason = ended.outcome, ended.reason
        except NightBusyError:
            raise
        except Exception as error:
            self._end("failed", str(error) if isinstance(error, TransferError) else f"{type(error).__name__}: {error}")
            raise
        return self._end(outcome, reason)

    def _outcome(self) -> tuple[Outcome, str]:
        plan, dataset = self._planned()
        config = self.config.model_copy(
            update={"training": self.config.training.model_copy(update={"warm_start": plan.warm_start})}
        )
        champion = None if plan.champion is None else load_version(self.store, self.night.name, plan.champion)
        self._check_change(dataset, champion)
        self.known["other_settings"] = _other_settings(self.store, config, dataset, champion)
        run = open_run(self.store, config, dataset, started_by=self.night.folder)
        self.known["run"] = run.id
        if judged_digest(self.config, dataset) != plan.trains:
            raise BaseChangedError(
                f"Night {self.night.number} decided what it trains, and since then a file of base.model or "
                "base.weights was replaced, or this release was installed.",
                advice="Repeat the command: the next night decides anew.",
            )
        self._look(run.id, plan.champion)
        with self._step("train") as step:
            fit(run, dataset)
            step("Run %s on %d images.", run.id, dataset.rows("train"))
        with self._step("evaluate") as step:
            report = evaluated(run, dataset, gate_asks=True)
            took = spent_of(read_report(run, report)[0])
            step("Report %d.%s", report, f" Training took {took.text}." if took else "")
        with self._step("publish") as step:
            challenger = published(run, report=report)
            step("Version %d, not promoted yet.", challenger.number)
        self.known["challenger"] = challenger.number
        return self._judged(plan, run, challenger)

    def _planned(self) -> tuple[NightPlan, Dataset]:
        """Read or make the night's plan. Returns it and its dataset version; ends the night if there is nothing new."""
        plan = self.night.plan()
        if plan is None:
            with self._step("ingest") as step:
                dataset = ensure_dataset(self.config, self.store)
                step("%s: %d images.", dataset.reference, sum(map(dataset.rows, dataset.counts)))
            plan = self._plan(dataset)
            self.claim.check()
            self.night.put_plan(plan)
        else:
            dataset = load_dataset(self.store, self.config.dataset_name, plan.dataset)
        self.known |= {"champion": plan.champion, "dataset": dataset.reference}
        self._end_if_nothing_new(plan, dataset)
        return plan, dataset

    def _plan(self, dataset: Dataset) -> NightPlan:
        serving = read_serving(self.store, self.night.name)
        champion = serving.version
        return NightPlan(
            dataset=dataset.number,
            champion=champion,
            promotion=serving.number,
            warm_start=self._begins_with(champion, dataset),
            trains=judged_digest(self.config, dataset),
        )

    def _begins_with(self, champion: int | None, dataset: Dataset) -> str | None:
        """The version whose head the night's begins with; None for a new head."""
        # A base with random weights has statistics of the images of its version: the champion's head is of another one.
        begins_random = self.config.base.weights == "none"
        if champion is None or begins_random or self.config.nightly.warm_start == "none":
            return self.config.training.warm_start
        before = trained_on(self.store, load_version(self.store, self.night.name, champion))
        if before is None:
            return self.config.training.warm_start
        seen = held_out_but_seen(self.store, dataset, before=before)
        if seen is None:
            return f"{self.night.name}/{champion}"
        logger.warning(
            "The head begins anew: version %d was trained on images that %s holds out (%s).",
            champion,
            dataset.reference,
            seen,
        )
        return None

    def _end_if_nothing_new(self, plan: NightPlan, dataset: Dataset) -> None:
        """End the night if the plan was judged before; also after a rollback, so that it is not tried again."""
        judged = judged_by(self.store, self.night.name, plan.trains)
        if judged not in (None, self.night.number):
            raise _EndedError(
                "nothing new", f"Night {judged} already judged this configuration on {dataset.reference}."
            )
        if plan.champion is not None:
            trained = load_version(self.store, self.night.name, plan.champion).trained
            if trained is not None and trained.run == run_id_for(self.config, dataset):
                found = f"The serving version {plan.champion} was trained on {dataset.reference}"
                raise _EndedError("nothing new", f"{found} with this configuration.")

    def _check_change(self, dataset: Dataset, champion: ModelVersion | None) -> None:
        with self._step("compare data") as step:
            before = None if champion is None else trained_on(self.store, champion)
            change = data_change(self.store, before, dataset, renames=self.config.dataset.rename_classes)
            self.known["change"] = change
            step("%d images new, %d gone.", change.new, change.gone)
        self._found(check_change(change, self.config.nightly.checks))

    def _look(self, run_id: str, champion: int | None) -> None:
        """Make the checks that need the images themselves; their features are cached for training."""
        with self._step("look at new images") as step:
            found = look_at_new(self.config, run_id=run_id, champion=champion)
            step("%d checks.", len(found))
        self._found(found)

    def _found(self, findings: Sequence[Finding]) -> None:
        """Record findings. Ends the night if one of them refuses the data."""
        self.known["findings"] = (*self.known.get("findings", ()), *findings)
        for finding in findings:
            if not finding.passed:
                logger.warning("%s: %s", finding.check, finding.text)
        refused = refusals(findings)
        if refused:
            raise _EndedError("refused", " ".join(finding.text for finding in refused))

    def _judged(self, plan: NightPlan, run: Run, challenger: ModelVersion) -> tuple[Outcome, str]:
        """Compare and decide; promote if the gate passes and no promotion came after the challenger's publication."""
        if challenger.decided_on_since(plan.promotion):
            return "kept", (
                f"Promotion {plan.promotion} decided what serves after version {challenger.number} was published "
                f"({challenger.published_at})."
            )
        with self._step("compare models") as step:
            judged = judge(run, challenger, champion=plan.champion, asked_by={"night": self.night.number})
            step("%d held-out images.", judged.comparison.images)
        decision, self.thumbnails = judged.decision, judged.thumbnails
        self.known |= {"comparison": judged.comparison, "decision": decision}
        if not decision.promote:
            self.claim.check()
            record_refusal(self.store, challenger, champion=plan.champion, evidence=judged.evidence)
            return "kept", decision.failed
        passed = " ".join(rule.text for rule in decision.rules if rule.name in _REASONS)
        if self.config.publish.promote == "never":
            return "kept", f"Version {challenger.number} passed the gate, and publish.promote is `never`. {passed}"
        self.claim.check()
        try:
            promoted = self._promote(plan, challenger, reason=passed, evidence=judged.evidence)
        except PromotionConflictError as conflict:
            return "kept", conflict.message
        self.known["promotion"] = promoted
        return "promoted", passed

    def _promote(self, plan: NightPlan, challenger: ModelVersion, *, reason: str, evidence: dict[str, Any]) -> int:
        """Promote, unless this night already did before an interruption. Returns the number of the promotion."""
        serving = read_serving(self.store, self.night.name)
        if serving.promotion is not None and (serving.promotion.evidence or {}).get("night") == self.night.number:
            return serving.number
        told = f"night {self.night.number}: {reason}"
        promote(self.store, challenger, reason=told, after=plan.promotion, evidence=evidence)
        return plan.promotion + 1

    def _end(self, outcome: Outcome, reason: str) -> tuple[NightSummary, str]:
        """Record the end of the night, and send it to the webhook."""
        # Imported here, because it loads matplotlib.
        from transfer.nights.page import render_night

        summary = NightSummary(
            name=self.night.name,
            night=self.night.number,
            outcome=outcome,
            reason=reason,
            started=self.night.started,
            ended=now_utc(),
            steps=tuple(self.steps),
            **self.known,
        )
        self.claim.check()
        earlier = earlier_summaries(self.store, self.night.name, before=self.night.number, count=_NIGHTS_SHOWN - 1)
        self.night.put_end(summary, render_night(summary, self.thumbnails, earlier=earlier))
        page = self.night.page_uri() or ""
        if outcome == "failed":
            # The command ends with the error itself, so only this line names the page.
            logger.info("Night %d of %s failed: %s", summary.night, summary.name, page)
        send(message_of(summary, page=page), self.config.nightly)
        self._remove_old_runs()
        return summary, page

    def _remove_old_runs(self) -> None:
        """Remove old runs. The night is over, so an error here is only logged."""
        keep = self.config.nightly.keep_runs
        if keep is None:
            return
        try:
            gone = remove_old_nights(self.store, self.night.name, keep=keep, but={self.known.get("run", "")})
        except Exception as error:  # noqa: BLE001 - the next night tries again
            logger.warning("Older runs of nights stay: %s", error)
        else:
            if gone:
                logger.info("Runs of earlier nights that were removed: %s.", ", ".join(run.id for run in gone))

    @contextmanager
    def _step(self, name: str) -> Iterator[Any]:
        started, told = time.monotonic(), [""]

        def tell(text: str, *values: object) -> None:
            told[0] = text % values

        try:
            yield tell
        finally:
            self.steps.append(Step(name=name, seconds=round(time.monotonic() - started, 3), text=told[0]))


def _other_settings(store: Store, config: Config, dataset: Dataset, champion: ModelVersion | None) -> tuple[str, ...]:
    """Keys that decide what is learned and that had other values in the champion's training."""
    if champion is None or champion.trained is None:
        return ()
    try:
        trained = read_start(store, champion.trained.run).identity
    except (CorruptObjectError, ObjectNotFoundError):
        return ()
    # Each night decides its images and its warm start anew.
    decided = ("dataset", "training.warm_start")
    return tuple(key for key in differing_keys(trained, identity(config, dataset)) if not key.startswith(decided))


def judged_digest(config: Config, dataset: Dataset) -> str:
    """Digest of the training and the gate's settings of a night, without the champion, which changes."""
    judging = deciding(config.nightly, Decides.OUTPUT)
    told: dict[str, Any] = {"learned": identity(config, dataset), "nightly": judging}
    if config.publish.promote == "never":
        # Such a night cannot promote, so a later night that may promote must judge again.
        told["promote"] = False
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
