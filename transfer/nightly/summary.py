"""What is known about a night when it is over: as JSON for programs, and what its page shows.

The champion is the version that serves when the night begins, the challenger the one that the night trains.
"""

from __future__ import annotations

from typing import Literal

from transfer.evaluation.metrics import Figures, Interval, Metrics

Outcome = Literal["promoted", "kept", "nothing new", "refused", "failed"]


class ClassChange(Figures):
    """Images of one class, over all splits, that are new and that are gone."""

    name: str
    before: int
    new: int
    gone: int


class DataChange(Figures):
    """How a dataset version differs from the one that the champion was trained on (`before`; None: there is none).

    An image whose label changed is new and gone. `new_shards` of `shards` are not in the version before.
    """

    before: str | None
    now: str
    images: int
    new: int
    gone: int
    shards: int
    new_shards: int
    rejected: int
    classes: list[ClassChange]


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


class Side(Figures):
    """A model version as the gate met it. `latency_ms`: median for one image. `metrics`: on the images compared."""

    version: int
    run: str
    dataset: str
    metrics: Metrics
    latency_ms: float
    size_bytes: int


class ClassRecall(Figures):
    """Recall of one class on the images compared; `champion` is None where it does not know the class, too."""

    name: str
    images: int
    champion: float | None
    challenger: float | None


class Flip(Figures):
    """An image that one of the two has right and the other wrong."""

    key: str
    sha256: str
    truth: str
    champion: str
    challenger: str


class Comparison(Figures):
    """Both models on the same held-out images, image by image.

    `left_out`: held-out images that the champion may have been trained on. `difference`: accuracy of the challenger
    less the champion's; `interval`: of the difference, by a paired bootstrap, at the gate's one-sided confidence at
    each end. `p_value`: one-sided, of McNemar's exact test. `gained` and `lost`: images that only the challenger, only
    the champion has right; `flips` shows some of both. All of these are None or empty where there is no champion.
    """

    images: int
    left_out: int
    challenger: Side
    champion: Side | None = None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    gained: int = 0
    lost: int = 0
    classes: list[ClassRecall]
    flips: tuple[Flip, ...] = ()


class Rule(Figures):
    """One rule of the gate. `found` and `limit` in the unit that `text` names."""

    name: str
    found: float | None
    limit: float | None
    passed: bool
    text: str


class Decision(Figures):
    """What the gate decided: the challenger serves if every rule is passed."""

    promote: bool
    rules: list[Rule]


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
    change: DataChange | None = None
    findings: tuple[Finding, ...] = ()
    comparison: Comparison | None = None
    decision: Decision | None = None
    steps: tuple[Step, ...] = ()
