"""Nights in storage: their start, plan, claims and end.

A night without an end is in progress or interrupted; or it was given up, and the next night has another configuration.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel, ConfigDict

from transfer.backbone.identity import base_identity
from transfer.catalog import layout
from transfer.config import BaselinesConfig, Config, Decides, deciding
from transfer.errors import AlreadyExistsError, TransferError
from transfer.nights.claim import HeldClaim, described, held_claim, take_claim
from transfer.nights.summary import NightSummary, Outcome
from transfer.storage import Log, Store, as_model, now_utc, put_content, put_document, read_document

logger = logging.getLogger(__name__)


class NightPlan(BaseModel):
    """Inputs of a night. `promotion`: number of the promotion in force at its start (0: none was)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: int
    champion: int | None
    promotion: int
    warm_start: str | None
    trains: str
    """Digest of the training and the gate's settings. A later night with the same digest has nothing new."""


class End(BaseModel):
    """End of a night, with the digests of its summary and its page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    reason: str
    ended: str
    summary: str
    page: str


@dataclass(frozen=True)
class Standing:
    """Status of a night. `end`: None if it is `at work`, `interrupted` or `given up`."""

    outcome: str
    reason: str
    end: End | None = None


@dataclass(frozen=True)
class Night:
    """A night of a configuration's model."""

    store: Store
    name: str
    number: int
    started: str
    config: str
    """Digest of the configuration that the night began with."""
    is_latest: bool = True
    """Whether no later night began."""

    @property
    def folder(self) -> str:
        """Folder of the night in storage."""
        return layout.night_folder(self.name, self.number)

    @property
    def claims(self) -> str:
        """Prefix of the log of its claims."""
        return layout.claims_log(self.folder)

    def plan(self) -> NightPlan | None:
        """Read the plan; None if it is not decided yet."""
        name = layout.night_plan(self.folder)
        return (
            as_model(NightPlan, read_document(self.store, name), uri=self.store.uri)
            if self.store.exists(name)
            else None
        )

    def put_plan(self, plan: NightPlan) -> None:
        """Record the plan, also for a process that resumes the night."""
        put_document(self.store, layout.night_plan(self.folder), plan.model_dump())

    def end(self) -> End | None:
        """Read the end; None if the night is not over."""
        name = layout.night_end(self.folder)
        return as_model(End, read_document(self.store, name), uri=self.store.uri) if self.store.exists(name) else None

    def put_end(self, summary: NightSummary, page: str) -> None:
        """Record the end. Raises AlreadyExistsError if another process recorded a different end."""
        _, of_summary = put_content(
            self.store, partial(layout.night_summary, self.folder), summary.model_dump_json().encode()
        )
        _, of_page = put_content(self.store, partial(layout.night_page, self.folder), page.encode())
        end = End(outcome=summary.outcome, reason=summary.reason, ended=summary.ended, summary=of_summary, page=of_page)
        plan = self.plan()
        if plan is not None and summary.outcome in {"promoted", "kept"}:
            put_document(self.store, layout.judged(self.name, plan.trains), {"night": self.number})
        put_document(self.store, layout.night_end(self.folder), end.model_dump())

    def standing(self) -> Standing:
        """Status of the night."""
        end = self.end()
        if end is not None:
            return Standing(end.outcome, end.reason, end)
        if not self.is_latest:
            return Standing("given up", f"Cut short; night {self.number + 1} began with another configuration.")
        claim = held_claim(self.store, self.claims)
        if claim is not None:
            return Standing("at work", f"By {described(claim)}.")
        return Standing("interrupted", "The same command with the same configuration goes on with it.")

    def summary(self) -> NightSummary | None:
        """Read the summary; None if the night is not over."""
        end = self.end()
        if end is None:
            return None
        data = self.store.read_verified(layout.night_summary(self.folder, end.summary), end.summary)
        return NightSummary.model_validate_json(data)

    def page_uri(self) -> str | None:
        """Address of the page; None if the night is not over."""
        end = self.end()
        return None if end is None else f"{self.store.uri}/{layout.night_page(self.folder, end.page)}"


def judged_by(store: Store, name: str, trains: str) -> int | None:
    """Number of the night that judged `NightPlan.trains`; None if no night did."""
    document = layout.judged(name, trains)
    return int(read_document(store, document)["night"]) if store.exists(document) else None


@contextmanager
def work_on_night(store: Store, config: Config) -> Iterator[tuple[Night, HeldClaim]]:
    """Claim the unfinished night, or begin the next one. Raises NightBusyError if another process works on it."""
    while True:
        night = _current(store, config)
        what = f"night {night.number} of {night.name}"
        with take_claim(store, night.claims, expires_s=config.nightly.claim_expires_s, what=what) as claim:
            # The previous holder of the claim may have ended the night, or begun it with another configuration.
            if night.end() is None and night.config == config_digest(config):
                yield night, claim
                return


def _current(store: Store, config: Config) -> Night:
    """The unfinished night, or else the next one, which begins here.

    An unfinished night with another configuration is given up, unless a process works on it.
    """
    digest = config_digest(config)
    log = _log(store, config.name)
    number = log.newest_number()
    if number:
        latest = read_night(store, config.name, number)
        if latest.end() is None and (latest.config == digest or held_claim(store, latest.claims)):
            return latest
    begun = {"started": now_utc(), "config": digest}
    # If two processes begin a night at the same time, both get the night of the first; the claim decides.
    with suppress(AlreadyExistsError):
        log.append(begun, number=number + 1)
    return read_night(store, config.name, number + 1)


def list_nights(store: Store, name: str) -> Iterator[Night]:
    """Yield all nights, the latest first; each is read when the iterator reaches it."""
    for place, (number, begun) in enumerate(_log(store, name).newest_first()):
        yield Night(store, name, number, begun["started"], begun["config"], is_latest=place == 0)


def earlier_summaries(store: Store, name: str, *, before: int, count: int) -> list[NightSummary]:
    """Summaries of the last `count` nights before night `before`, oldest first, without unfinished nights.

    They are only shown, so a summary that cannot be read is left out, with a warning.
    """
    found = []
    for number in range(max(before - count, 1), before):
        try:
            summary = read_night(store, name, number).summary()
        except (TransferError, ValueError) as error:
            logger.warning("Night %d will not be in the trend: %s", number, error)
            continue
        if summary is not None:
            found.append(summary)
    return found


def config_digest(config: Config) -> str:
    """Digest of all settings of a night except where it runs; files of the base count by their content."""
    told = deciding(config, Decides.DATA, Decides.FEATURES, Decides.LEARNING, Decides.OUTPUT)
    told["base"] |= base_identity(config.base, storage=config.storage)
    if config.baselines == BaselinesConfig():
        # Releases before that section named nights without it.
        del told["baselines"]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _log(store: Store, name: str) -> Log:
    return Log(store, layout.nights_log(name))


def read_night(store: Store, name: str, number: int, *, is_latest: bool = True) -> Night:
    """A night by its number. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    begun = _log(store, name).read(number)
    return Night(store, name, number, begun["started"], begun["config"], is_latest)
