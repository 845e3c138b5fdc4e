"""Which trials can be trained side by side as one program, decided from their configurations alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transfer.config import Config

_MAY_DIFFER: dict[str, Any] = {
    # What one program can hold side by side,
    "phases": {0: {"learning_rate": True, "optimizer": {"weight_decay"}}},
    "head": {"dropout", "l2"},
    "training": {"label_smoothing", "seed"},
    # and what has no part in what is learned.
    "name": True,
    "storage": True,
    "workers": True,
    "publish": True,
    "sweep": True,
}


def pack_key(config: Config) -> str | None:
    """A digest of all that the trials of one pack have in common; None for a trial that has to be trained alone.

    A trial can be packed when it trains nothing but its head, in one phase, on what is kept of the frozen part. Two
    trials of one dataset version with the same key differ only in learning rate, weight decay, dropout, L2 penalty,
    label smoothing and seed.
    """
    if not _is_packable(config):
        return None
    common = config.model_dump(mode="json", exclude=_MAY_DIFFER)
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]


def _is_packable(config: Config) -> bool:
    phase, augmentation = config.phases[0], config.augmentation
    augmented_anew = phase.augment and augmentation.is_active and not augmentation.views
    return (
        len(config.phases) == 1
        and phase.unfreeze == 0
        and config.training.mixed_precision == "off"
        and config.activations.keep != "never"
        and not augmented_anew
    )
