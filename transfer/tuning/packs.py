"""Which trials can be trained side by side as one program, decided from their configurations alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transfer.config import NOT_LEARNED, Config

_MAY_DIFFER: dict[str, Any] = {
    # What one program can hold side by side,
    "phases": {0: {"learning_rate": True, "optimizer": {"weight_decay"}}},
    "head": {"dropout", "l2"},
    "training": {"label_smoothing", "seed"},
    # and what has no part in what is learned.
    "name": True,
    **dict.fromkeys(NOT_LEARNED, True),
}


def pack_key(config: Config) -> str | None:
    """A digest of all that the trials of one pack have in common; None for a trial that has to be trained alone.

    A trial can be packed when it trains nothing but its head, in one phase, on what is kept of the frozen part. Two
    trials of one dataset version with the same key differ only in learning rate, weight decay, dropout, L2 penalty,
    label smoothing and seed, so they train on the same kept output. The files of the base are not in the key: packs lie
    in the folder of their sweep, whose id they are part of.
    """
    phase = config.phases[0]
    augmented = phase.augment and config.augmentation.is_active
    packable = (
        len(config.phases) == 1
        and phase.unfreeze == 0
        and config.training.mixed_precision == "off"
        and config.activations.keep != "never"
        and (not augmented or config.augmentation.views > 0)
    )
    if not packable:
        return None
    common = config.model_dump(mode="json", exclude=_MAY_DIFFER)
    if augmented:
        # The seed decides the views, too, and so what is kept of them.
        common["views_seed"] = config.training.seed
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]
