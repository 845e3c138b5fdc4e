"""Errors when memory runs out: the work, the allocation that failed, and the keys that decide the need of memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transfer.errors import OutOfMemoryError

if TYPE_CHECKING:
    from transfer.config import Config

# TensorFlow's message. Its class ResourceExhaustedError is also raised for full disks and large messages.
_WORDS = re.compile(
    r"(OOM when allocating|Out of memory|(Failed|Unable) to allocate|Dst tensor is not initialized).*", re.IGNORECASE
)
_LONGEST = 300

_SEE_WHAT_ELSE = "`nvidia-smi` and `free -h` show what else holds memory."

FOR_ANY_WORK = f"{_SEE_WHAT_ELSE} Without it, or on a machine with more, repeat the command: what is done is found."
"""Advice if no key of the configuration is known to help."""

FOR_THE_FROZEN_PART = (
    "Give half precision by training.mixed_precision, a smaller base.image_size, or `features: never`, which has it "
    f"computed in each step, on training.batch_size images at a time. {_SEE_WHAT_ELSE}"
)
FOR_EVALUATION = (
    f"The run is finished and stays. {_SEE_WHAT_ELSE} Without it, or on the CPU by CUDA_VISIBLE_DEVICES=-1, repeat the "
    "command. How many images come at a time is the run's training.batch_size."
)
FOR_PREDICTION = (
    f"{_SEE_WHAT_ELSE} Without it, or on the CPU by CUDA_VISIBLE_DEVICES=-1, repeat the command. A model of a smaller "
    "base.image_size needs less."
)


def for_training(config: Config) -> str:
    """Advice for training: the keys that decide the memory of a step, with their values."""
    phases = ", ".join(f"phases.{index}.unfreeze ({phase.unfreeze})" for index, phase in enumerate(config.phases))
    training = config.training
    return (
        f"Give a smaller training.batch_size ({training.batch_size}), half precision by training.mixed_precision "
        f"({training.mixed_precision}), or fewer blocks to train by {phases}. {_SEE_WHAT_ELSE}"
    )


@contextmanager
def memory_explained(work: str, *, advice: str = FOR_ANY_WORK) -> Iterator[None]:
    """Turn the errors of TensorFlow and Python when memory runs out in the block into OutOfMemoryError.

    `work`: the work of the block, as the subject of a sentence. A nested `memory_explained` wins.
    """
    try:
        yield
    except Exception as error:
        found = what_did_not_fit(error)
        if found is None:
            raise
        raise OutOfMemoryError(f"{work} ran out of memory: {found}.", advice=advice) from error


def what_did_not_fit(error: Exception) -> str | None:
    """The message of an error about memory; None for any other error."""
    if isinstance(error, MemoryError):
        return str(error).rstrip(".") or "Python could not allocate any more"
    # The error can only be one of TensorFlow if it was imported.
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return None
    found = _WORDS.search(error.message)
    return found[0].rstrip(". ")[:_LONGEST] if found else None
