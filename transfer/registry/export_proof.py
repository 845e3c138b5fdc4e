"""Does the exported model answer what the evaluated model answered? Asked in fresh processes, by several loaders.

Loaders differ in how they restore weights: Python's walks the object graph, a session restores variables by name. So a
model may answer one of them, and the other not at all.

A fresh process has nothing of the training process in it: a layer that only works because its Python object is still
alive, a preprocessing step left out of the export or a class order that changed show up here, before anyone serves it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from transfer.config import ImageInput
from transfer.dataset.decode import decode_pixels
from transfer.errors import DifferentAnswersError, OutOfMemoryError, ParityError
from transfer.registry.export import DESCRIPTION
from transfer.runtime.fork_server import process_pool
from transfer.runtime.memory import memory_explained, what_did_not_fit

Answer = Callable[[list[bytes]], np.ndarray]
"""From encoded images to probabilities, float32 [images, classes]."""


@dataclass(frozen=True)
class Loader:
    """One way to load a model and to ask it."""

    name: str
    """In messages and in provenance."""
    load: Callable[[Path], Answer]

    def answers(self, folder: Path, batches: Iterable[list[bytes]]) -> np.ndarray | str:
        """The probabilities for all images, float32 [images, classes]; or why the model in `folder` gives none.

        Raises OutOfMemoryError, which says nothing about the model.
        """
        with memory_explained(f"A model asked by {self.name}"):
            try:
                answer = self.load(folder)
                return np.concatenate([answer(batch) for batch in batches])
            except Exception as error:
                if what_did_not_fit(error):
                    raise
                # Whatever it is, the model does not answer. TensorFlow's messages go on for pages.
                return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def load_in_python(folder: Path) -> Answer:
    """Python's loader, asked for encoded images."""
    loaded = tf.saved_model.load(str(folder))

    # Through the loaded object, with which its variables live and die.
    def answer(images: list[bytes]) -> np.ndarray:
        return _probabilities(loaded.signatures["serving_default"](image_bytes=tf.constant(images)))

    return answer


def load_in_session(folder: Path) -> Answer:
    """A session, as TensorFlow Serving and the C, C++, Java and Go APIs make it, asked for encoded images."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    loaded = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(folder))
    signature = loaded.signature_def["serving_default"]
    question, probabilities = signature.inputs["image_bytes"].name, signature.outputs["probabilities"].name

    def answer(images: list[bytes]) -> np.ndarray:
        return np.asarray(session.run(probabilities, {question: images}))

    return answer


def load_pixels_in_python(folder: Path) -> Answer:
    """Python's loader, asked for images that this project's own decoder has decoded."""
    loaded = tf.saved_model.load(str(folder))
    ask = loaded.signatures["pixels"]
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    # Exports of earlier releases take colors and know no depth. Their size does not matter here.
    image_input = ImageInput(**described.get("image_input", {"height": 1, "width": 1}))

    def answer(images: list[bytes]) -> np.ndarray:
        decoded = (tf.cast(decode_pixels(tf.constant(image), image_input), tf.float32) for image in images)
        return np.concatenate([_probabilities(ask(images=pixels[None])) for pixels in decoded])

    return answer


PYTHON = Loader("tf.saved_model.load", load_in_python)
SESSION = Loader("a session, as in TensorFlow Serving", load_in_session)
PIXELS = Loader("the signature `pixels`", load_pixels_in_python)
LOADERS = (PYTHON, SESSION, PIXELS)


def _probabilities(answers: dict[str, tf.Tensor]) -> np.ndarray:
    return np.asarray(answers["probabilities"])


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

    Returns the largest difference in a probability, by the name of the loader (`Loader`). Python's loader answers
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
