"""How the numbers of a night are written, in the gate's sentences, on the page and on a terminal."""

from __future__ import annotations

from transfer.nightly.summary import ClassRecall


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


def many(count: int, thing: str) -> str:
    """`1 image`, `1,204 images`; for words that take an s."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def recall_change(row: ClassRecall) -> float | None:
    """By how much the challenger's recall of a class is higher; None where there are not two.

    Counted in images, so that 2 of 10 lost are a loss of 0.2 and not of a little more.
    """
    if row.champion is None or row.challenger is None:
        return None
    return (round(row.challenger * row.images) - round(row.champion * row.images)) / row.images
