"""How long passing faults of a storage service are borne."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

Result = TypeVar("Result")
_log = logging.getLogger("transfer.storage")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter, bounded in attempts and in time.

    Waits are drawn between zero and a bound that starts at `first_wait_s`, doubles, and stays below `longest_wait_s`.
    No attempt begins later than `total_s` after the first. One of which nothing is heard for `silence_s` has failed.
    """

    attempts: int = 8
    first_wait_s: float = 0.25
    longest_wait_s: float = 15.0
    total_s: float = 120.0
    silence_s: float = 60.0

    def call(self, action: Callable[[], Result], *, what: str, is_transient: Callable[[BaseException], bool]) -> Result:
        """What `action` returns, tried again while it raises transient errors; the last error when they persist."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts) | tenacity.stop_before_delay(self.total_s),
            wait=tenacity.wait_random_exponential(multiplier=self.first_wait_s, max=self.longest_wait_s),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=lambda state: _log.warning(
                "%s failed in attempt %d, trying again", what, state.attempt_number
            ),
            reraise=True,
        )
        return retrying(action)
