"""Checks of what is new, from numbers alone: what was found, its limit, and a sentence about both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from transfer.config.nightly import ChecksConfig
from transfer.nightly.summary import DataChange, Finding

NO_CHAMPION = "No model serves yet, so there is nothing to compare with."

_CHANCE = 0.99
_DRAWS = 200
"""How rarely chance alone may raise an alarm about classes, and how many draws tell."""


def check_change(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    """The checks that need no more than counts: `volume`, `vanished`, `flood`, `rejects` and `label_shift`."""
    return [
        *_volume(change, checks),
        *_vanished(change, checks),
        *_flood(change, checks),
        *_rejects(change, checks),
        *_label_shift(change, checks),
    ]


def check_drift(area: float, *, before: int, new: int, checks: ChecksConfig) -> list[Finding]:
    """The check of the features, given how well so many images `before` and so many `new` ones can be told apart."""
    text = (
        f"A classifier tells {new:,} new images from {before:,} earlier ones with an area under the ROC curve of "
        f"{area:.2f} (0.5: not at all); at most {checks.drift.limit:g} is expected."
    )
    return _finding("drift", area, text, checks)


def check_agreement(accuracy: float, expected: float, *, images: int, checks: ChecksConfig) -> list[Finding]:
    """The check of the labels, given the champion's accuracy on so many new images, and on held-out ones."""
    text = (
        f"The serving model agrees with the labels of {_percent(accuracy)} of {images:,} new images, and was right for "
        f"{_percent(expected)} of the held-out ones; at most {_percent(checks.agreement.limit)} less may be."
    )
    return _finding("agreement", expected - accuracy, text, checks)


def not_asked(check: str, why: str, checks: ChecksConfig) -> list[Finding]:
    """A check that was not made. `why`: a sentence."""
    return _finding(check, None, why, checks)


def too_few(new: int, checks: ChecksConfig) -> str | None:
    """Why so many new images are not compared in distribution, features or labels, if so."""
    if new >= checks.min_new_images:
        return None
    least = checks.min_new_images
    return f"{_images(new)} new; with fewer than {least:,} (checks.min_new_images) nothing can be said."


def refusals(findings: Iterable[Finding]) -> list[Finding]:
    """Those for which a night ends before training."""
    return [finding for finding in findings if not finding.passed and finding.action == "refuse"]


def _volume(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    if change.before is None:
        return not_asked("volume", NO_CHAMPION, checks)
    before = sum(each.before for each in change.classes)
    share = change.gone / before
    text = (
        f"{change.gone:,} of {_images(before)} gone ({_percent(share)}), those with another class by now included; at "
        f"most {_percent(checks.volume.limit)} may be."
    )
    return _finding("volume", share, text, checks)


def _vanished(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    if change.before is None:
        return not_asked("vanished", NO_CHAMPION, checks)
    names = [each.name for each in change.classes if each.before and each.before + each.new == each.gone]
    shown = f": {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else ""
    most = f"{checks.vanished.limit:g} may be" if checks.vanished.limit else "none may be"
    text = f"{_classes(len(names))} without any image by now{shown}; {most}."
    return _finding("vanished", len(names), text, checks)


def _flood(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    why = NO_CHAMPION if change.before is None else too_few(change.new, checks)
    if why is not None:
        return not_asked("flood", why, checks)
    limit = checks.flood.limit
    before = sum(each.before for each in change.classes)
    # A class that had as large a share before is no news.
    small = [each for each in change.classes if each.before / before <= limit]
    most = max(small, key=lambda each: each.new, default=None)
    if most is None:
        return not_asked("flood", f"Each class made up more than {_percent(limit)} of the images before.", checks)
    share = most.new / change.new
    text = (
        f"The class {most.name} makes up {_percent(share)} of the {change.new:,} new images, and "
        f"{_percent(most.before / before)} of those before; at most {_percent(limit)} is expected."
    )
    return _finding("flood", share, text, checks)


def _rejects(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    images = change.images + change.rejected
    share = change.rejected / max(images, 1)
    text = (
        f"{change.rejected:,} of {images:,} images were refused ({_percent(share)}); at most "
        f"{_percent(checks.rejects.limit)} is expected."
    )
    return _finding("rejects", share, text, checks)


def _label_shift(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    why = NO_CHAMPION if change.before is None else too_few(change.new, checks)
    if why is not None:
        return not_asked("label_shift", why, checks)
    before = np.array([each.before for each in change.classes], np.float64)
    new = np.array([each.new for each in change.classes], np.float64)
    distance = _distance(new, before)
    # Few images of many classes are never distributed like the rest, even if drawn from it.
    drawn = np.random.default_rng(0).multinomial(change.new, before / before.sum(), size=_DRAWS)
    chance = float(np.quantile([_distance(each, before) for each in drawn], _CHANCE))
    limit = max(checks.label_shift.limit, chance)
    by_chance = f" (as far as {change.new:,} images may be by chance)" if chance > checks.label_shift.limit else ""
    text = (
        f"The classes of the {change.new:,} new images and those of the images before differ by a total variation "
        f"distance of {distance:.2f} (0: alike, 1: none in common); at most {limit:.2f}{by_chance} is expected."
    )
    return _finding("label_shift", distance, text, checks, limit=limit)


def _finding(
    check: str, found: float | None, text: str, checks: ChecksConfig, *, limit: float | None = None
) -> list[Finding]:
    """The finding; none where the check is off. `limit`: default is the configuration's."""
    config = getattr(checks, check)
    if config.action == "off":
        return []
    limit = config.limit if limit is None else limit
    passed = found is None or found <= limit
    return [Finding(check=check, found=found, limit=limit, passed=passed, action=config.action, text=text)]


def _distance(counts: np.ndarray, others: np.ndarray) -> float:
    """Total variation distance between two distributions, given as counts."""
    return float(np.abs(counts / counts.sum() - others / others.sum()).sum() / 2)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _images(count: int) -> str:
    return f"{count:,} image is" if count == 1 else f"{count:,} images are"


def _classes(count: int) -> str:
    return f"{count:,} class is" if count == 1 else f"{count:,} classes are"
