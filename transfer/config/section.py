"""What every part of the configuration is made of, and what a key states beside its type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Decides(Enum):
    """What a key decides first. What comes after that depends on it, too: other images make another run."""

    DATA = "data"
    """Which images there are, and in which splits: the dataset version."""
    FEATURES = "features"
    """What the frozen part sees and answers: the digest of cached features, and a run's id."""
    LEARNING = "learning"
    """What is learned on them: a run's id."""
    SEARCH = "search"
    """What a sweep tries, and which trial wins: a sweep's id."""
    PLACEMENT = "placement"
    """Where and how fast it is computed, and where it is kept; never what is learned."""
    OUTPUT = "output"
    """What becomes of a trained model: how it is judged, published and announced."""


class Varies(Flag):
    """Where a key that decides what is learned may have several values although all else stays as it is."""

    IN_TRAINING = auto()
    """Between two epochs of one training, as in population based training."""
    IN_PACK = auto()
    """Between trials that are trained as one program."""
    IN_PROGRAM = auto()
    """Between two uses of one compiled program."""
    IN_WARM_START = auto()
    """Between a run and the one whose head it begins with, of keys that decide features."""


@dataclass(frozen=True)
class NotSearched:
    """Stated by a key that a sweep may not search. Keys that decide nothing of what is learned need not state it."""

    why: str


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused.

    A class states what its keys decide, `class HeadConfig(Section, decides=Decides.LEARNING)`; a key that decides
    something else states that itself: `pooling: Annotated[Pooling, Decides.FEATURES]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    decides: ClassVar[Decides | None] = None

    def __init_subclass__(cls, *, decides: Decides | None = None, **options: Any) -> None:
        """Take what the class statement says. A subclass that says nothing decides what its parent does."""
        super().__init_subclass__(**options)
        cls.decides = decides or cls.decides
