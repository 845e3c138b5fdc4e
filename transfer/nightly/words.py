"""How the numbers of a night are written, in the gate's sentences, on the page and on a terminal."""

from __future__ import annotations

from transfer.nightly.summary import ClassRecall, NightSummary


def points(difference: float) -> str:
    """A difference of two shares, with its sign: `+1.3 points`."""
    # + 0.0: a difference that rounds to nothing has no sign.
    value = round(100 * difference, 1) + 0.0
    return f"{value:+.1f} points" if value else "0.0 points"


def p_text(p_value: float) -> str:
    """`p = 0.018`; what is smaller than can be written so is said to be."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3g}"


def size(size_bytes: float) -> str:
    """`14.2 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.0f} bytes" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} GiB"


def many(count: int, thing: str, things: str | None = None) -> str:
    """`1 image`, `1,204 images`. `things`: the plural, by default with an s."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def recall_change(row: ClassRecall) -> float | None:
    """By how much the challenger's recall of a class is higher; None where there are not two.

    Counted in images, so that 2 of 10 lost are a loss of 0.2 and not of a little more.
    """
    if row.champion is None or row.challenger is None:
        return None
    return (round(row.challenger * row.images) - round(row.champion * row.images)) / row.images


def headline(summary: NightSummary) -> str:
    """What the night came to, in one sentence."""
    challenger, champion = f"Version {summary.challenger}", summary.champion
    match summary.outcome:
        case "promoted":
            return f"{challenger} serves now, " + (
                "the first one." if champion is None else f"not {champion} any more."
            )
        case "kept":
            return f"{challenger} was not promoted" + ("." if champion is None else f" over version {champion}.")
        case "nothing new":
            return "There was nothing new."
        case "refused":
            return "The new data was refused, and nothing was trained on it."
        case "failed":
            return "The night failed."


def why(summary: NightSummary) -> str:
    """The outcome's reason. A promotion's is every rule; where the rules are shown, too, their number is enough."""
    if summary.outcome == "promoted" and summary.decision is not None:
        rules = len(summary.decision.rules)
        return f"All rules of the gate are passed, {rules} of {rules}."
    return summary.reason
