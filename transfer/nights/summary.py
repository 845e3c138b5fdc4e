"""The summary of a finished night: JSON for programs, and the data of its page.

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
    """Numbers of images of one class over all splits: in the version before, new, and gone."""

    name: str
    before: int
    new: int
    gone: int


class DataChange(Figures):
    """How a dataset version differs from the one that the champion was trained on (`before`; None: there is none).

    An image whose label changed counts as new and as gone. `new_shards`: number of the `shards` that the version before
    does not have. `rejects`: number of refused files by reason. `ledger`: the object that lists them. Both are empty in
    summaries of earlier releases.
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
        """Classes with images that had none in the version before; empty if there is no version before."""
        return [] if self.before is None else [each for each in self.classes if each.new and not each.before]


class Finding(Figures):
    """Result of one check of the data. `text`: the figure and its limit in a sentence.

    `found`: the figure; None if the check was skipped. Then `passed` is True and `text` has the reason.
    """

    check: str
    found: float | None
    limit: float
    passed: bool
    action: Literal["warn", "refuse"]
    text: str


class Step(Figures):
    """Duration of one step of the night, in seconds of wall clock. `text`: its result."""

    name: str
    seconds: float
    text: str


class NightSummary(Figures):
    """A finished night. Times are UTC, ISO 8601. `champion`: the version that served when it began."""

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
    """Keys that decide what is learned and whose values differ from those of the champion's training."""
    change: DataChange | None = None
    findings: tuple[Finding, ...] = ()
    comparison: Comparison | None = None
    decision: Decision | None = None
    steps: tuple[Step, ...] = ()
