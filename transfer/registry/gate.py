"""The gate: decides whether a challenger may serve, by rules that are all evaluated and recorded with their figures."""

from __future__ import annotations

from collections.abc import Iterator

from transfer.config import GateConfig
from transfer.evaluation.metrics import Figures, Interval, Metrics, beats_commonest_class
from transfer.registry.comparison import ClassRecall, Comparison, Side
from transfer.runtime.numbers import digits_apart, many, p_text, percent, percents_apart, points, size


class Rule(Figures):
    """Result of one rule of the gate. `found` and `limit` have the unit that `text` names."""

    name: str
    found: float | None
    limit: float | None
    passed: bool
    text: str


class Decision(Figures):
    """Decision of the gate: the challenger serves if it passes every rule."""

    promote: bool
    rules: list[Rule]

    @property
    def failed(self) -> str:
        """Texts of the failed rules, as sentences."""
        return " ".join(rule.text for rule in self.rules if not rule.passed)


def decide(gate: GateConfig, comparison: Comparison) -> Decision:
    """Evaluate every configured rule. Without a champion, only the rules about the challenger alone apply."""
    rules = [*_against_champion(gate, comparison), *_floors(gate, comparison), *_limits(gate, comparison)]
    if comparison.champion is None:
        rules += [_beats_commonest_class(comparison.challenger.metrics), _first(gate)]
    return Decision(promote=all(rule.passed for rule in rules), rules=rules)


def _against_champion(gate: GateConfig, comparison: Comparison) -> Iterator[Rule]:
    if comparison.difference is None or comparison.interval is None or comparison.p_value is None:
        return
    yield _enough_images(gate, comparison)
    if gate.require == "better":
        yield _better(gate, comparison, comparison.p_value)
        if gate.margin:
            yield _by_margin(gate, comparison.difference)
    else:
        yield _not_worse(gate, comparison.interval)
    if gate.max_class_drop is not None:
        yield _class_drop(gate, comparison.classes, gate.max_class_drop)


def _floors(gate: GateConfig, comparison: Comparison) -> Iterator[Rule]:
    if gate.min_accuracy is not None:
        accuracy = comparison.challenger.metrics.accuracy
        found, limit = percents_apart(accuracy, gate.min_accuracy)
        yield Rule(
            name="min_accuracy",
            found=accuracy,
            limit=gate.min_accuracy,
            passed=accuracy >= gate.min_accuracy,
            text=f"The challenger's accuracy is {found}; at least {limit} is required.",
        )
    if gate.min_class_recall is not None:
        yield _class_recall(gate, comparison.classes, gate.min_class_recall)


def _limits(gate: GateConfig, comparison: Comparison) -> Iterator[Rule]:
    challenger, champion = comparison.challenger, comparison.champion
    if champion is not None and gate.max_latency_ratio is not None:
        yield _latency_ratio(challenger, champion, gate.max_latency_ratio)
    if gate.max_latency_ms is not None:
        digits = digits_apart(challenger.latency_ms, gate.max_latency_ms, least=1)
        yield Rule(
            name="max_latency_ms",
            found=challenger.latency_ms,
            limit=gate.max_latency_ms,
            passed=challenger.latency_ms <= gate.max_latency_ms,
            text=f"The challenger takes {challenger.latency_ms:,.{digits}f} ms for one image; at most "
            f"{gate.max_latency_ms:,g} ms are allowed.",
        )
    if champion is not None and gate.max_size_ratio is not None:
        yield _size_ratio(challenger, champion, gate.max_size_ratio)
    if gate.max_size_bytes is not None:
        yield Rule(
            name="max_size_bytes",
            found=challenger.size_bytes,
            limit=gate.max_size_bytes,
            passed=challenger.size_bytes <= gate.max_size_bytes,
            text=f"The challenger's files have {challenger.size_bytes:,} bytes; at most {gate.max_size_bytes:,} are "
            "allowed.",
        )


def _beats_commonest_class(metrics: Metrics) -> Rule:
    commonest = metrics.commonest_class_accuracy
    return Rule(
        name="commonest_class",
        found=metrics.accuracy,
        limit=commonest,
        passed=beats_commonest_class(metrics),
        text=f"The challenger's accuracy is {percent(metrics.accuracy)}; more than the {percent(commonest)} of always "
        f"answering `{metrics.commonest_class.name}`, the commonest class, is required.",
    )


def _first(gate: GateConfig) -> Rule:
    passed = gate.first == "promote"
    return Rule(
        name="first",
        found=None,
        limit=None,
        passed=passed,
        text="Nothing serves yet; the first model may serve if it passes all other rules."
        if passed
        else "Nothing serves yet; the first model waits until somebody promotes it.",
    )


def _enough_images(gate: GateConfig, comparison: Comparison) -> Rule:
    without = (
        f" ({comparison.left_out:,} more are left out because the champion may have been trained on them)"
        if comparison.left_out
        else ""
    )
    return Rule(
        name="min_images",
        found=comparison.images,
        limit=gate.min_images,
        passed=comparison.images >= gate.min_images,
        text=f"Both models answered {many(comparison.images, 'held-out image')}{without}; at least {gate.min_images:,} "
        f"{'is' if gate.min_images == 1 else 'are'} required.",
    )


def _better(gate: GateConfig, comparison: Comparison, p_value: float) -> Rule:
    # In floats, 1 - 0.95 is slightly above 0.05.
    limit = round(1 - gate.confidence, 12)
    found = (
        f"The challenger alone is right for {many(comparison.gained, 'image')}, the champion alone for "
        f"{comparison.lost:,}"
        if comparison.gained or comparison.lost
        else "Both models are right for the same images"
    )
    return Rule(
        name="better",
        found=p_value,
        limit=limit,
        passed=p_value <= limit,
        text=f"{found}: {p_text(p_value)} by McNemar's exact test; at most {limit:g} is allowed.",
    )


def _by_margin(gate: GateConfig, difference: float) -> Rule:
    found, limit = _points(difference, gate.margin)
    return Rule(
        name="margin",
        found=difference,
        limit=gate.margin,
        passed=difference >= gate.margin,
        text=f"The challenger's accuracy minus the champion's is {found}; at least {limit} are required.",
    )


def _not_worse(gate: GateConfig, interval: Interval) -> Rule:
    limit = -gate.margin + 0.0
    found, allowed = _points(interval.low, limit)
    return Rule(
        name="not_worse",
        found=interval.low,
        limit=limit,
        passed=interval.low >= limit,
        text=f"With {percent(gate.confidence, 0 if round(100 * gate.confidence, 9).is_integer() else 1)} confidence "
        f"the challenger's accuracy minus the champion's is {found} or more; at least {allowed} are required.",
    )


def _class_drop(gate: GateConfig, classes: list[ClassRecall], limit: float) -> Rule:
    changes = [(change, row) for row in _judged(gate, classes) if (change := row.change) is not None]
    if not changes:
        text = f"No class that both know has {many(gate.class_min_images, 'held-out image')}, so no drop is measured."
        return Rule(name="max_class_drop", found=None, limit=limit, passed=True, text=text)
    change, worst = min(changes, key=lambda found: found[0])
    digits = digits_apart(-100 * change, 100 * limit, least=1)
    found = (
        f"Of the classes with {many(gate.class_min_images, 'held-out image')} or more, `{worst.name}` loses most: its "
        f"recall falls by {-100 * change:.{digits}f} points on {many(worst.images, 'image')}"
        if change < 0
        else f"No class with {many(gate.class_min_images, 'held-out image')} or more loses any recall"
    )
    return Rule(
        name="max_class_drop",
        found=-change + 0.0,
        limit=limit,
        passed=-change <= limit,
        text=f"{found}; a loss of at most {100 * limit:g} points is allowed.",
    )


def _class_recall(gate: GateConfig, classes: list[ClassRecall], limit: float) -> Rule:
    recalls = [(row.challenger, row) for row in _judged(gate, classes) if row.challenger is not None]
    if not recalls:
        text = f"No class has {many(gate.class_min_images, 'held-out image')}, so no class's recall is judged."
        return Rule(name="min_class_recall", found=None, limit=limit, passed=True, text=text)
    recall, worst = min(recalls, key=lambda found: found[0])
    found, least = percents_apart(recall, limit)
    return Rule(
        name="min_class_recall",
        found=recall,
        limit=limit,
        passed=recall >= limit,
        text=f"The class with the lowest recall is `{worst.name}` with {found} of "
        f"{many(worst.images, 'image')}; at least {least} is required.",
    )


def _judged(gate: GateConfig, classes: list[ClassRecall]) -> list[ClassRecall]:
    """Classes with at least `class_min_images` held-out images."""
    return [row for row in classes if row.images >= gate.class_min_images]


def _latency_ratio(challenger: Side, champion: Side, limit: float) -> Rule:
    ours, theirs = f"{challenger.latency_ms:,.1f} ms", f"{champion.latency_ms:,.1f} ms"
    both = f"The challenger takes {ours} for one image and the champion {theirs}"
    return _ratio("max_latency_ratio", challenger.latency_ms / champion.latency_ms, limit, both, "long")


def _size_ratio(challenger: Side, champion: Side, limit: float) -> Rule:
    both = f"The challenger's files have {size(challenger.size_bytes)} and the champion's {size(champion.size_bytes)}"
    return _ratio("max_size_ratio", challenger.size_bytes / champion.size_bytes, limit, both, "much")


def _ratio(name: str, ratio: float, limit: float, found: str, how: str) -> Rule:
    digits = digits_apart(ratio, limit, least=2)
    text = f"{found}, which is {ratio:.{digits}f} times as {how}; at most {limit:g} times is allowed."
    return Rule(name=name, found=ratio, limit=limit, passed=ratio <= limit, text=text)


def _points(found: float, limit: float) -> tuple[str, str]:
    digits = digits_apart(100 * found, 100 * limit, least=1)
    return points(found, digits), points(limit, digits)
