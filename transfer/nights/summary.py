"""What is known about a night when it is over: as JSON for programs, and what its page shows.

The champion is the version that serves when the night begins, the challenger the one that the night trains.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from transfer.evaluation.metrics import Figures
from transfer.registry.comparison import Comparison
from transfer.registry.gate import Decision

Outcome = Literal["promoted", "kept", "nothing new", "refused", "failed"]


class ClassChange(Figures):
    """Images of one class, over all splits, that are new and that are gone."""

    name: str
    before: int
    new: int
    gone: int


class DataChange(Figures):
    """How a dataset version differs from the one that the champion was trained on (`before`; None: there is none).

    An image whose label changed is new and gone. `new_shards` of `shards` are not in the version before. `rejects`:
    how many of the `rejected` files were refused for which reason, and `ledger` the object that lists them; both empty
    in summaries of earlier releases.
    """

    before: str | None
    now: str
    images: int
    new: int
    gone: int
    shards: int
    new_shards: int
    rejected: int
    rejects: dict[str, int] = Field(default_factory=dict)
    ledger: str | None = None
    classes: list[ClassChange]

    @property
    def new_classes(self) -> list[ClassChange]:
        """Classes of which the version before had no image; none where there is no version before."""
        return [] if self.before is None else [each for each in self.classes if each.new and not each.before]


class Finding(Figures):
    """One check of the data: what was found, its limit, and what that means, in a sentence.

    `found`: None where there was nothing to check; `text` says why. `passed` is True then.
    """

    check: str
    found: float | None
    limit: float
    passed: bool
    action: Literal["warn", "refuse"]
    text: str


class Step(Figures):
    """What a part of the night took, in seconds of wall clock. `text`: what it did."""

    name: str
    seconds: float
    text: str


class NightSummary(Figures):
    """A night that is over. Times are UTC, ISO 8601. `champion`: version that served when it began."""

    name: str
    night: int
    outcome: Outcome
    reason: str
    started: str
    ended: str
    champion: int | None = None
    challenger: int | None = None
    promotion: int | None = None
    dataset: str | None = None
    run: str | None = None
    other_settings: tuple[str, ...] = ()
    """Keys whose values decided what the champion learned, and are others in this night."""
    change: DataChange | None = None
    findings: tuple[Finding, ...] = ()
    comparison: Comparison | None = None
    decision: Decision | None = None
    steps: tuple[Step, ...] = ()
