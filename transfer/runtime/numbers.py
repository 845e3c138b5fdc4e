"""Formatting of numbers, the same on pages, terminals, in errors and in logs."""

from __future__ import annotations

from typing import Literal

_MOST_DIGITS = 12


def percent(share: float, digits: int = 1) -> str:
    """`96.4 %`. Only exactly 1 is written as 100 %, and only exactly 0 as 0 %."""
    step = 10.0**-digits
    value = 100.0 * share
    if share < 1 and value > 100 - step / 2:
        return f">{100 - step:.{digits}f} %"
    if share > 0 and value < step / 2:
        return f"<{step:.{digits}f} %"
    return f"{value:.{digits}f} %"


def percents_apart(found: float, limit: float) -> tuple[str, str]:
    """A share and its limit, with enough digits to distinguish them: `20.01 %` and `20.00 %`."""
    digits = digits_apart(100 * found, 100 * limit, least=1)
    return percent(found, digits), percent(limit, digits)


def percent_tick(share: float) -> str:
    """A share at the tick of an axis, without unnecessary digits: `50 %`."""
    return f"{100 * share:.4g} %"


def points(difference: float, decimals: int = 1) -> str:
    """A difference of two shares, with its sign: `+1.3 points`."""
    # + 0.0: a difference that rounds to 0 has no sign.
    value = round(100 * difference, decimals) + 0.0
    return f"{value:+.{decimals}f} points" if value else f"{0:.{decimals}f} points"


def digits_apart(found: float, limit: float, *, least: int, kind: Literal["f", "g"] = "f") -> int:
    """Number of digits, at least `least`, that distinguish a number from its limit when both are rounded.

    Digits are decimals (`f`) or significant digits (`g`). So 0.304 beside 0.3 is not written as `0.30`.
    """
    for digits in range(least, _MOST_DIGITS):
        if f"{found:.{digits}{kind}}" != f"{limit:.{digits}{kind}}":
            return digits
    return least


def p_text(p_value: float) -> str:
    """`p = 0.018`, or `p < …` for values below the last digit."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3g}"


def many(count: int, thing: str, things: str | None = None) -> str:
    """`1 image`, `1,204 images`. `things`: the plural, by default with an s."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def size(size_bytes: float) -> str:
    """`14.2 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.0f} bytes" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} GiB"


def duration(seconds: float) -> str:
    """`4.2 s`, `12 s`, `3 min 4 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
