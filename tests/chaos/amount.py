"""How many trials a test of this folder makes: few by default, many for `make chaos`."""

from __future__ import annotations

import os


def trials(short: int, long: int) -> int:
    """`short`, or `long` where TRANSFER_CHAOS=long."""
    return long if os.environ.get("TRANSFER_CHAOS") == "long" else short
