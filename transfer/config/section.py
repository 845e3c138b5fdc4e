"""The base class of all sections of the configuration, and the statements of a key besides its type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Decides(Enum):
    """The first result that a key decides. Later results depend on it, too: other images make another run."""

    DATA = "data"
    """The images and their splits: the dataset version."""
    FEATURES = "features"
    """The input and output of the frozen part: the digest of cached features, and a run's id."""
    LEARNING = "learning"
    """What is learned from the features: a run's id."""
    SEARCH = "search"
    """The trials of a sweep and its winner: a sweep's id."""
    PLACEMENT = "placement"
    """Where and how fast results are computed, and where they are stored; never what is learned."""
    OUTPUT = "output"
    """How a trained model is judged, published and announced."""


class Varies(Flag):
    """Where a key that decides what is learned may have several values while all other keys stay the same."""

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
    """Statement of a key that a sweep may not search. Keys that do not decide what is learned need no statement."""

    why: str


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused.

    A class states what its keys decide, `class HeadConfig(Section, decides=Decides.LEARNING)`; a key that decides
    something else states that itself: `pooling: Annotated[Pooling, Decides.FEATURES]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    decides: ClassVar[Decides | None] = None

    def __init_subclass__(cls, *, decides: Decides | None = None, **options: Any) -> None:
        """Take `decides` from the class statement. A subclass without it decides what its parent decides."""
        super().__init_subclass__(**options)
        cls.decides = decides or cls.decides
