"""Nights in storage: begun, planned, claimed by whoever works on one, ended.

A night without an end is not over, or was given up: the next one has another configuration.
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
from transfer.config import Config, Decides, deciding
from transfer.errors import AlreadyExistsError, TransferError
from transfer.nights.claim import HeldClaim, described, held_claim, take_claim
from transfer.nights.summary import NightSummary, Outcome
from transfer.storage import Log, Store, as_model, now_utc, put_content, put_document, read_document

logger = logging.getLogger(__name__)


class NightPlan(BaseModel):
    """What a night works on. `promotion`: number of the promotion in force when it began (0: none was)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: int
    champion: int | None
    promotion: int
    warm_start: str | None
    trains: str
    """Digest of what would be trained and how it would be judged: a night with the same one has nothing new."""


class End(BaseModel):
    """How a night ended, with the digests of its summary and its page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    reason: str
    ended: str
    summary: str
    page: str


@dataclass(frozen=True)
class Standing:
    """What has become of a night. `end`: None while it is `at work`, `interrupted` or `given up`."""

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
    """Digest of the configuration it was begun with."""
    is_latest: bool = True
    """Whether none was begun after it."""

    @property
    def folder(self) -> str:
        """Folder of the night in storage."""
        return layout.night_folder(self.name, self.number)

    @property
    def claims(self) -> str:
        """Where the log of its claims is."""
        return layout.claims_log(self.folder)

    def plan(self) -> NightPlan | None:
        """What it works on, once that is decided."""
        name = layout.night_plan(self.folder)
        return (
            as_model(NightPlan, read_document(self.store, name), uri=self.store.uri)
            if self.store.exists(name)
            else None
        )

    def put_plan(self, plan: NightPlan) -> None:
        """Decide what it works on, also for whoever goes on with it."""
        put_document(self.store, layout.night_plan(self.folder), plan.model_dump())

    def end(self) -> End | None:
        """How it ended, if it is over."""
        name = layout.night_end(self.folder)
        return as_model(End, read_document(self.store, name), uri=self.store.uri) if self.store.exists(name) else None

    def put_end(self, summary: NightSummary, page: str) -> None:
        """End it. Raises AlreadyExistsError when somebody else ended it otherwise."""
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
        """How it ended, or what has become of it so far."""
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
        """All that is known about it, if it is over."""
        end = self.end()
        if end is None:
            return None
        data = self.store.read_verified(layout.night_summary(self.folder, end.summary), end.summary)
        return NightSummary.model_validate_json(data)

    def page_uri(self) -> str | None:
        """Where its page is, if it is over."""
        end = self.end()
        return None if end is None else f"{self.store.uri}/{layout.night_page(self.folder, end.page)}"


def judged_by(store: Store, name: str, trains: str) -> int | None:
    """Number of the night that came to a judgement on `NightPlan.trains`, if one did."""
    document = layout.judged(name, trains)
    return int(read_document(store, document)["night"]) if store.exists(document) else None


@contextmanager
def work_on_night(store: Store, config: Config) -> Iterator[tuple[Night, HeldClaim]]:
    """Claim the night that is not over, or begin the next one. Raises NightBusyError when somebody works on one."""
    while True:
        night = _current(store, config)
        what = f"night {night.number} of {night.name}"
        with take_claim(store, night.claims, expires_s=config.nightly.claim_expires_s, what=what) as claim:
            # Whoever had the claim may have ended the night, or begun it with another configuration.
            if night.end() is None and night.config == config_digest(config):
                yield night, claim
                return


def _current(store: Store, config: Config) -> Night:
    """The night that is not over, or the next one, begun.

    One that was begun with another configuration, and that nobody works on, is left behind.
    """
    digest = config_digest(config)
    log = _log(store, config.name)
    number = max(log.numbers(), default=0)
    if number:
        latest = read_night(store, config.name, number)
        if latest.end() is None and (latest.config == digest or held_claim(store, latest.claims)):
            return latest
    begun = {"started": now_utc(), "config": digest}
    # Of two at the same moment one is first: both come to its night, and the claim decides.
    with suppress(AlreadyExistsError):
        log.append(begun, number=number + 1)
    return read_night(store, config.name, number + 1)


def list_nights(store: Store, name: str) -> Iterator[Night]:
    """All nights, the latest first; each is read when it is asked for."""
    numbers = _log(store, name).numbers()
    for number in reversed(numbers):
        yield read_night(store, name, number, is_latest=number == numbers[-1])


def earlier_summaries(store: Store, name: str, *, before: int, count: int) -> list[NightSummary]:
    """Summaries of the last `count` nights before one, the oldest first, without those that are not over.

    They are shown, and nothing is decided by them: one that cannot be read is left out, with a warning.
    """
    found = []
    for number in [number for number in _log(store, name).numbers() if number < before][-count:]:
        try:
            summary = read_night(store, name, number).summary()
        except (TransferError, ValueError) as error:
            logger.warning("Night %d will not be in the trend: %s", number, error)
            continue
        if summary is not None:
            found.append(summary)
    return found


def config_digest(config: Config) -> str:
    """Digest of all that a night depends on, files of the base by their content; not of where it runs."""
    told = deciding(config, Decides.DATA, Decides.FEATURES, Decides.LEARNING, Decides.OUTPUT)
    told["base"] |= base_identity(config.base, storage=config.storage)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _log(store: Store, name: str) -> Log:
    return Log(store, layout.nights_log(name))


def read_night(store: Store, name: str, number: int, *, is_latest: bool = True) -> Night:
    """A night by its number. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    begun = _log(store, name).read(number)
    return Night(store, name, number, begun["started"], begun["config"], is_latest)
