"""How many trials a test of this folder makes: few by default, many for `make chaos`."""

from __future__ import annotations

import os
from typing import TypeVar

Amount = TypeVar("Amount")


def trials(short: Amount, long: Amount) -> Amount:
    """`short`, or `long` where TRANSFER_CHAOS=long: how many, or which."""
    return long if os.environ.get("TRANSFER_CHAOS") == "long" else short
