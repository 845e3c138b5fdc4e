"""The claim of the process that works on a night: renewed while the process lives, expired otherwise.

Every renewal is the next entry of a log, created with put-if-absent. So a process that was wrongly taken for dead
cannot renew its claim: another process wrote that number. It notices this before it writes anything durable.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from transfer.errors import AlreadyExistsError, NightBusyError, StorageError
from transfer.storage import Log, Store, as_model, now_utc

logger = logging.getLogger(__name__)

# Several renewals in each expiry, so that a failed one does not lose the claim.
_RENEWALS_PER_EXPIRY = 4


class Claim(BaseModel):
    """An entry of the log. Times are UTC, ISO 8601, of the holder's clock."""

    model_config = ConfigDict(frozen=True)

    holder: str
    """Random id of the claim."""
    host: str
    namespace: str
    """PID namespace: in the same one on the same host, `pid` shows whether the holder lives."""
    pid: int
    since: str
    until: str
    """Time at which the claim expires unless it is renewed."""
    released: bool = False

    @property
    def holds(self) -> bool:
        """Whether the holder may still be working."""
        expired = datetime.now(UTC) >= datetime.fromisoformat(self.until)
        return not (self.released or expired or _is_dead(self))


class HeldClaim:
    """A claim of this process, renewed in the background until the `with` block ends."""

    def __init__(self, log: Log, number: int, claim: Claim, *, expires_s: float) -> None:
        self._log, self._number, self._claim, self._expires_s = log, number, claim, expires_s
        self._lost: str | None = None
        # With two renewals at once, the second one would find its number taken and count the claim as lost.
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="claim", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            self._append(self._claim.model_copy(update={"released": True}))

    def check(self) -> None:
        """Call this before every durable write. Raises NightBusyError if another process took the night over."""
        # Independent of clocks, because the machine may have slept or its clock may have been set back.
        self._renew()
        if self._lost is not None:
            raise NightBusyError(
                f"Another process took this night over while this one was not heard of: {self._lost}.",
                advice="It goes on with the work. If it was wrong to, raise nightly.claim_expires_s.",
            )

    def _renew_until_ended(self) -> None:
        while self._lost is None and not self._ended.wait(self._expires_s / _RENEWALS_PER_EXPIRY):
            self._renew()

    def _renew(self) -> None:
        with self._renewing:
            if self._lost is None:
                self._append(self._claim.model_copy(update={"until": _from_now(self._expires_s)}))

    def _append(self, claim: Claim) -> None:
        try:
            self._log.append(claim.model_dump(), number=self._number + 1)
        except AlreadyExistsError:
            other = Claim.model_validate(self._log.read(self._number + 1))
            self._lost = described(other)
        except StorageError as error:
            logger.warning("The night's claim was not renewed, and will be tried again: %s", error)
        else:
            self._number, self._claim = self._number + 1, claim


def take_claim(store: Store, prefix: str, *, expires_s: float, what: str) -> HeldClaim:
    """Take the claim whose log is at `prefix`. `what`: name of the claimed work in messages.

    Raises NightBusyError if another process has the claim; the message names that process.
    """
    number, current = _latest(store, prefix)
    if current is not None and current.holds:
        raise _busy(what, current)
    claim = Claim(
        holder=uuid.uuid4().hex,
        host=socket.gethostname(),
        namespace=_namespace(),
        pid=os.getpid(),
        since=now_utc(),
        until=_from_now(expires_s),
    )
    log = Log(store, prefix)
    try:
        log.append(claim.model_dump(), number=number + 1)
    except AlreadyExistsError:
        raise _busy(what, Claim.model_validate(log.read(number + 1))) from None
    if current is not None and not current.released:
        logger.warning("Going on with %s after %s, of whom nothing is heard any more.", what, described(current))
    return HeldClaim(log, number + 1, claim, expires_s=expires_s)


def held_claim(store: Store, prefix: str) -> Claim | None:
    """The current claim in the log at `prefix`; None if no process can be working."""
    _, claim = _latest(store, prefix)
    return claim if claim is not None and claim.holds else None


def described(claim: Claim) -> str:
    """The process of the claim and its start, in words."""
    return f"process {claim.pid} on {claim.host}, since {claim.since}"


def _latest(store: Store, prefix: str) -> tuple[int, Claim | None]:
    """Number and claim of the latest entry; 0 and None if the log is empty."""
    found = Log(store, prefix).latest()
    return (0, None) if found is None else (found[0], as_model(Claim, found[1], uri=store.uri))


def _busy(what: str, claim: Claim) -> NightBusyError:
    return NightBusyError(
        f"{what[0].upper()}{what[1:]} is being worked on by {described(claim)}.",
        advice=f"There is nothing to do. If that process is dead, its claim expires at {claim.until}.",
    )


def _from_now(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def _is_dead(claim: Claim) -> bool:
    """Whether the claim's process has ended; False for a process of another machine, which cannot be checked."""
    if (claim.host, claim.namespace) != (socket.gethostname(), _namespace()):
        return False
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # The process exists and belongs to another user.
    return False


def _namespace() -> str:
    """Id of the PID namespace, because containers number processes on their own; empty on systems without it."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a file's path
    except OSError:
        return ""
