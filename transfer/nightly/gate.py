"""Whether a challenger may serve: one rule after the other, all of them asked, each answered with its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from transfer.config import GateConfig
from transfer.evaluation.metrics import Interval
from transfer.evaluation.templates import percent
from transfer.nightly.summary import ClassRecall, Comparison, Decision, Rule, Side
from transfer.nightly.words import many, p_text, points, recall_change, size


def decide(gate: GateConfig, comparison: Comparison) -> Decision:
    """Ask every rule that the configuration sets. Without a champion those remain that judge the challenger alone."""
    rules = [*_against_champion(gate, comparison), *_floors(gate, comparison), *_limits(gate, comparison)]
    if comparison.champion is None:
        rules.append(_first(gate))
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
        yield Rule(
            name="min_accuracy",
            found=accuracy,
            limit=gate.min_accuracy,
            passed=accuracy >= gate.min_accuracy,
            text=f"Its accuracy is {percent(accuracy)}, and at least {percent(gate.min_accuracy)} is required.",
        )
    if gate.min_class_recall is not None:
        yield _class_recall(gate, comparison.classes, gate.min_class_recall)


def _limits(gate: GateConfig, comparison: Comparison) -> Iterator[Rule]:
    challenger, champion = comparison.challenger, comparison.champion
    if champion is not None and gate.max_latency_ratio is not None:
        yield _latency_ratio(challenger, champion, gate.max_latency_ratio)
    if gate.max_latency_ms is not None:
        yield Rule(
            name="max_latency_ms",
            found=challenger.latency_ms,
            limit=gate.max_latency_ms,
            passed=challenger.latency_ms <= gate.max_latency_ms,
            text=f"It takes {challenger.latency_ms:,.1f} ms for one image, and at most {gate.max_latency_ms:,g} ms are "
            "allowed.",
        )
    if champion is not None and gate.max_size_ratio is not None:
        yield _size_ratio(challenger, champion, gate.max_size_ratio)
    if gate.max_size_bytes is not None:
        yield Rule(
            name="max_size_bytes",
            found=challenger.size_bytes,
            limit=gate.max_size_bytes,
            passed=challenger.size_bytes <= gate.max_size_bytes,
            text=f"Its files have {challenger.size_bytes:,} bytes, and at most {gate.max_size_bytes:,} are allowed.",
        )


def _first(gate: GateConfig) -> Rule:
    passed = gate.first == "promote"
    return Rule(
        name="first",
        found=None,
        limit=None,
        passed=passed,
        text="Nothing serves yet, and the first model may serve if it keeps all limits."
        if passed
        else "Nothing serves yet, and the first model waits until somebody promotes it.",
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
        text=f"Both answered {many(comparison.images, 'held-out image')}{without}, and at least {gate.min_images:,} "
        f"{'is' if gate.min_images == 1 else 'are'} required.",
    )


def _better(gate: GateConfig, comparison: Comparison, p_value: float) -> Rule:
    # 1 - 0.95 is a little more than 0.05.
    limit = round(1 - gate.confidence, 12)
    return Rule(
        name="better",
        found=p_value,
        limit=limit,
        passed=p_value <= limit,
        text=f"The challenger alone has {many(comparison.gained, 'image')} right and the champion alone "
        f"{comparison.lost:,}: {p_text(p_value)} by McNemar's exact test, and at most {limit:g} is allowed.",
    )


def _by_margin(gate: GateConfig, difference: float) -> Rule:
    return Rule(
        name="margin",
        found=difference,
        limit=gate.margin,
        passed=difference >= gate.margin,
        text=f"Its accuracy differs from the champion's by {points(difference)}, and at least {points(gate.margin)} "
        "are required.",
    )


def _not_worse(gate: GateConfig, interval: Interval) -> Rule:
    limit = -gate.margin + 0.0
    return Rule(
        name="not_worse",
        found=interval.low,
        limit=limit,
        passed=interval.low >= limit,
        text=f"With {percent(gate.confidence, 0 if round(100 * gate.confidence, 9).is_integer() else 1)} confidence "
        f"its accuracy differs from the champion's by {points(interval.low)} or more, and at least {points(limit)} are "
        "required.",
    )


def _class_drop(gate: GateConfig, classes: list[ClassRecall], limit: float) -> Rule:
    changes = [(change, row) for row in _judged(gate, classes) if (change := recall_change(row)) is not None]
    if not changes:
        text = f"No class that both know has {many(gate.class_min_images, 'held-out image')}, so no drop is measured."
        return Rule(name="max_class_drop", found=None, limit=limit, passed=True, text=text)
    change, worst = min(changes, key=lambda found: found[0])
    found = (
        f"The class that loses most is `{worst.name}`, whose recall falls by {-100 * change:.1f} points on "
        f"{many(worst.images, 'image')}"
        if change < 0
        else "No class loses any recall"
    )
    return Rule(
        name="max_class_drop",
        found=-change + 0.0,
        limit=limit,
        passed=-change <= limit,
        text=f"{found}, and a loss of at most {100 * limit:g} points is allowed.",
    )


def _class_recall(gate: GateConfig, classes: list[ClassRecall], limit: float) -> Rule:
    recalls = [(row.challenger, row) for row in _judged(gate, classes) if row.challenger is not None]
    if not recalls:
        text = f"No class has {many(gate.class_min_images, 'held-out image')}, so no class's recall is judged."
        return Rule(name="min_class_recall", found=None, limit=limit, passed=True, text=text)
    recall, worst = min(recalls, key=lambda found: found[0])
    return Rule(
        name="min_class_recall",
        found=recall,
        limit=limit,
        passed=recall >= limit,
        text=f"The class with the lowest recall is `{worst.name}` with {percent(recall)} of "
        f"{many(worst.images, 'image')}, and at least {percent(limit)} is required.",
    )


def _judged(gate: GateConfig, classes: list[ClassRecall]) -> list[ClassRecall]:
    """Classes with enough images to be judged alone."""
    return [row for row in classes if row.images >= gate.class_min_images]


def _latency_ratio(challenger: Side, champion: Side, limit: float) -> Rule:
    both = f"It takes {challenger.latency_ms:,.1f} ms for one image and the champion {champion.latency_ms:,.1f} ms"
    return _ratio("max_latency_ratio", challenger.latency_ms / champion.latency_ms, limit, both, "long")


def _size_ratio(challenger: Side, champion: Side, limit: float) -> Rule:
    both = f"Its files have {size(challenger.size_bytes)} and the champion's {size(champion.size_bytes)}"
    return _ratio("max_size_ratio", challenger.size_bytes / champion.size_bytes, limit, both, "much")


def _ratio(name: str, ratio: float, limit: float, found: str, how: str) -> Rule:
    text = f"{found}, which is {ratio:.2f} times as {how}, and at most {limit:g} times is allowed."
    return Rule(name=name, found=ratio, limit=limit, passed=ratio <= limit, text=text)
