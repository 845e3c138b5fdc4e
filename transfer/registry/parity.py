"""Does the exported model answer what the evaluated model answered? Asked in fresh processes, by several loaders.

A fresh process has nothing of the training process in it: a layer that only works because its Python object is still
alive, a preprocessing step left out of the export or a class order that changed show up here, before anyone serves it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from transfer.errors import DifferentAnswersError, OutOfMemoryError, ParityError
from transfer.fork_server import process_pool
from transfer.registry.loaders import PIXELS, PYTHON, SESSION, Loader

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest difference in any probability that may be published."""
HALF_PRECISION_TOLERANCE = 2e-2
"""The same for networks that compute in half precision, where fused and plain kernels round differently."""
_BATCH_SIZE = 32
_FEW = 8

Outcomes = dict[str, float | str]
"""By the name of a loader: the largest difference in a probability, or why it got no answer."""


def prove_parity(
    exported: Path, images: list[bytes], expected: np.ndarray, *, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Compare the exported model's answers, in fresh processes, with `expected`, float32 [images, classes].

    Returns the largest difference in a probability, by the name of the loader (`loaders.py`). Python's loader answers
    all images, the others the first few: what they can have wrong does not depend on the image. Raises ParityError when
    a difference is above `tolerance`, when a loader gets no answer, and when a process fails; OutOfMemoryError.
    """
    few = (images[:_FEW], expected[:_FEW])
    # Side by side: each load takes as long as dozens of images.
    with process_pool(2) as pool:
        asked = [
            pool.submit(compare, exported, images, expected, [PYTHON]),
            pool.submit(compare, exported, *few, [SESSION, PIXELS]),
        ]
        found = {loader: outcome for future in asked for loader, outcome in outcomes_of(future).items()}
    for loader, outcome in found.items():
        check_outcome(loader, outcome, images=len(images), tolerance=tolerance)
    differences = {loader: float(outcome) for loader, outcome in found.items()}
    logger.info(
        "Exported and evaluated model differ by at most %.2g on %d images.", max(differences.values()), len(images)
    )
    return differences


def outcomes_of(asked: Future[Outcomes]) -> Outcomes:
    """What a process found. Raises ParityError when it failed or ended, OutOfMemoryError."""
    try:
        return asked.result()
    except OutOfMemoryError as error:
        raise OutOfMemoryError(
            error.message, advice="Nothing was published. Repeat the command when the machine has more memory."
        ) from error
    except BrokenProcessPool as error:
        raise ParityError(
            "A process that asks the exported model ended abruptly.",
            advice="Nothing was published. Usually the machine ran out of memory; repeat the command when it has more.",
        ) from error
    except Exception as error:
        raise ParityError(
            f"The exported model cannot be used in a fresh process: {type(error).__name__}: {error}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        ) from error


def check_outcome(loader: str, outcome: float | str, *, images: int, tolerance: float) -> None:
    """Raise ParityError unless a loader got answers, DifferentAnswersError if they differ by more than `tolerance`."""
    if isinstance(outcome, str):
        raise ParityError(
            f"The exported model does not answer, asked by {loader}: {outcome}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        )
    # Written so that NaN is no agreement.
    if not outcome <= tolerance:
        raise DifferentAnswersError(
            f"The exported model's probabilities, asked by {loader}, differ from the evaluated model's by "
            f"{outcome:.3g} on {images} held-out images; at most {tolerance:g} is accepted.",
            advice="Nothing was published. Check layers of the base network that behave differently when reloaded.",
        )


def compare(exported: Path, images: list[bytes], expected: np.ndarray, loaders: Sequence[Loader]) -> Outcomes:
    """The outcome of each of these loaders in this process. Raises OutOfMemoryError."""
    batches = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
    found: Outcomes = {}
    for loader in loaders:
        answers = loader.answers(exported, batches)
        # NaN must fail the proof; Python's max() would drop it depending on the order.
        found[loader.name] = answers if isinstance(answers, str) else float(np.max(np.abs(answers - expected)))
    return found
