"""Nights in storage.

nights/<name>/<00000001>.json               a night has begun: with which configuration
nights/<name>/<00000001>/claims/<n>.json    who works on it (`claim.py`); the highest number counts
nights/<name>/<00000001>/plan.json          what it works on: once decided, also for whoever goes on with it
nights/<name>/<00000001>/page/<sha256>.html, summary/<sha256>.json
nights/<name>/<00000001>/end.json           written last: how it ended; a night without it is not over
nights/<name>/judged/<digest>.json          which night judged what is trained and judged like this
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from transfer.backbone.identity import base_digests
from transfer.config import NOT_LEARNED, Config
from transfer.errors import AlreadyExistsError
from transfer.nightly.claim import HeldClaim, is_held, take_claim
from transfer.nightly.summary import NightSummary, Outcome
from transfer.storage import Log, Store, as_model, put_content, put_document, read_document


class Plan(BaseModel):
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
class Night:
    """A night of a configuration's model."""

    store: Store
    name: str
    number: int
    started: str
    config: str
    """Digest of the configuration it was begun with."""

    @property
    def prefix(self) -> str:
        """Folder of the night in storage."""
        return f"nights/{self.name}/{self.number:08d}"

    @property
    def claims(self) -> str:
        """Where the log of its claims is."""
        return f"{self.prefix}/claims"

    def plan(self) -> Plan | None:
        """What it works on, once that is decided."""
        name = f"{self.prefix}/plan.json"
        return as_model(Plan, read_document(self.store, name), uri=self.store.uri) if self.store.exists(name) else None

    def put_plan(self, plan: Plan) -> None:
        """Decide what it works on, also for whoever goes on with it."""
        put_document(self.store, f"{self.prefix}/plan.json", plan.model_dump())

    def end(self) -> End | None:
        """How it ended, if it is over."""
        name = f"{self.prefix}/end.json"
        return as_model(End, read_document(self.store, name), uri=self.store.uri) if self.store.exists(name) else None

    def put_end(self, summary: NightSummary, page: str) -> None:
        """End it. Raises AlreadyExistsError when somebody else ended it otherwise."""
        _, of_summary = put_content(self.store, f"{self.prefix}/summary", ".json", summary.model_dump_json().encode())
        _, of_page = put_content(self.store, f"{self.prefix}/page", ".html", page.encode())
        end = End(outcome=summary.outcome, reason=summary.reason, ended=summary.ended, summary=of_summary, page=of_page)
        plan = self.plan()
        if plan is not None and summary.outcome in {"promoted", "kept"}:
            put_document(self.store, f"nights/{self.name}/judged/{plan.trains}.json", {"night": self.number})
        put_document(self.store, f"{self.prefix}/end.json", end.model_dump())

    def summary(self) -> NightSummary | None:
        """All that is known about it, if it is over."""
        end = self.end()
        if end is None:
            return None
        data = self.store.read_verified(f"{self.prefix}/summary/{end.summary}.json", end.summary)
        return NightSummary.model_validate_json(data)

    def page_uri(self) -> str | None:
        """Where its page is, if it is over."""
        end = self.end()
        return None if end is None else f"{self.store.uri}/{self.prefix}/page/{end.page}.html"


def judged_by(store: Store, name: str, trains: str) -> int | None:
    """Number of the night that came to a judgement on `Plan.trains`, if one did."""
    document = f"nights/{name}/judged/{trains}.json"
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
        latest = _read(store, config.name, number)
        if latest.end() is None and (latest.config == digest or is_held(store, latest.claims)):
            return latest
    begun = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "config": digest}
    # Of two at the same moment one is first: both come to its night, and the claim decides.
    with suppress(AlreadyExistsError):
        log.append(begun, number=number + 1)
    return _read(store, config.name, number + 1)


def list_nights(store: Store, name: str) -> Iterator[Night]:
    """All nights, the latest first; each is read when it is asked for."""
    for number in reversed(_log(store, name).numbers()):
        yield _read(store, name, number)


def config_digest(config: Config) -> str:
    """Digest of all that a night depends on, files of the base included; not of where it runs."""
    told = config.model_dump(mode="json", exclude=set(NOT_LEARNED) - {"publish", "nightly"})
    files = base_digests(config.base, storage=config.storage)
    if files:
        told["base_digests"] = files
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _log(store: Store, name: str) -> Log:
    return Log(store, f"nights/{name}")


def _read(store: Store, name: str, number: int) -> Night:
    begun = _log(store, name).read(number)
    return Night(store, name, number, begun["started"], begun["config"])
