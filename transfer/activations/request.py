"""What is to be kept and what was done for it, described without TensorFlow: the driver of a cluster job reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from transfer.config import Config, PhaseConfig


@dataclass(frozen=True)
class Request:
    """The frozen part's output for a phase's `unfreeze`, for all images of a split."""

    split: str
    unfreeze: int | str
    view: int | None = None
    """Which augmented view of the images it sees; None: the images as they are. Validation has no views."""


def requests_of(config: Config, phase: PhaseConfig) -> list[Request]:
    """What a phase trains, validates and maybe is evaluated on, where its frozen part's output is kept."""
    augmented = phase.augment and config.augmentation.is_active
    views = range(config.augmentation.views) if augmented else [None]
    train = [Request("train", phase.unfreeze, view) for view in views]
    requests = [*train, Request("validation", phase.unfreeze)]
    # A base that no phase trains is evaluated on what is kept, too: one pass over the images does for all of it.
    return [*requests, Request("test", phase.unfreeze)] if config.trains_head_only else requests


@dataclass(frozen=True)
class Extraction:
    """What was done to have outputs kept. A shard counts once for each prefix whose output for it was asked for."""

    images: int = 0
    """That went through the network or a part of it, each time that they did."""
    shards_found: int = 0
    """Kept already."""
    shards_computed: int = 0
    shards_resumed: int = 0
    """Of those computed: from what was kept of an earlier cut instead of from pixels."""
    build_s: float = 0.0
    """Building the forward pass."""
    input_s: float = 0.0
    """Waiting for images to be read and decoded, or for kept rows. It goes on beside the forward pass."""
    forward_s: float = 0.0
    write_s: float = 0.0

    def __add__(self, other: Extraction) -> Extraction:
        names = [field.name for field in fields(self)]
        return Extraction(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @staticmethod
    def sum(parts: Iterable[Extraction]) -> Extraction:
        """Everything that was done in several parts; seconds of parts at the same time add up, too."""
        return sum(parts, Extraction())
