"""Proof that the exported model predicts the same as the evaluated model, in fresh processes and by several loaders.

Loaders restore weights in different ways: Python's loader walks the object graph, a session restores variables by name.
So a model may work in one loader and fail in the other.

A fresh process shares no object with the training process. So the proof finds a layer that only works while its Python
object is alive, a preprocessing step that is missing in the export, and a changed order of classes, before the model is
published.
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

from transfer.catalog.layout import VERSION_DESCRIPTION
from transfer.config import ImageInput
from transfer.dataset.decode import decode_pixels
from transfer.errors import DifferentAnswersError, OutOfMemoryError, ParityError
from transfer.runtime.fork_server import process_pool
from transfer.runtime.memory import memory_explained, what_did_not_fit

Answer = Callable[[list[bytes]], np.ndarray]
"""From encoded images to probabilities, float32 [images, classes]."""


@dataclass(frozen=True)
class Loader:
    """One way to load a model and run it."""

    name: str
    """Name of the loader in messages and in the provenance."""
    load: Callable[[Path], Answer]

    def answers(self, folder: Path, batches: Iterable[list[bytes]]) -> np.ndarray | str:
        """The probabilities for all images, float32 [images, classes]; or the error of the model in `folder`, as text.

        Raises OutOfMemoryError, because that is no fault of the model.
        """
        with memory_explained(f"A model asked by {self.name}"):
            try:
                answer = self.load(folder)
                return np.concatenate([answer(batch) for batch in batches])
            except Exception as error:
                if what_did_not_fit(error):
                    raise
                # Any exception means that the model fails. TensorFlow's messages can be pages long.
                return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def load_in_python(folder: Path) -> Answer:
    """Load with Python's loader; the function takes encoded images."""
    loaded = tf.saved_model.load(str(folder))

    # The closure holds `loaded`, because the variables live only as long as that object.
    def answer(images: list[bytes]) -> np.ndarray:
        return _probabilities(loaded.signatures["serving_default"](image_bytes=tf.constant(images)))

    return answer


def load_in_session(folder: Path) -> Answer:
    """Load into a session, as TensorFlow Serving and the C, C++, Java and Go APIs do; it takes encoded images."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    loaded = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(folder))
    signature = loaded.signature_def["serving_default"]
    question, probabilities = signature.inputs["image_bytes"].name, signature.outputs["probabilities"].name

    def answer(images: list[bytes]) -> np.ndarray:
        return np.asarray(session.run(probabilities, {question: images}))

    return answer


def load_pixels_in_python(folder: Path) -> Answer:
    """Load with Python's loader; the function decodes images with this project's decoder and runs `pixels`."""
    loaded = tf.saved_model.load(str(folder))
    ask = loaded.signatures["pixels"]
    described = json.loads((folder / VERSION_DESCRIPTION).read_text(encoding="utf-8"))
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
"""Largest difference in any probability with which a model is published."""
HALF_PRECISION_TOLERANCE = 2e-2
"""The same for networks in half precision, in which fused and plain kernels round differently."""
_BATCH_SIZE = 32
_FEW = 8

Outcomes = dict[str, float | str]
"""For each loader's name, the largest difference in a probability, or the error as text."""


def prove_parity(
    exported: Path, images: list[bytes], expected: np.ndarray, *, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Compare the exported model's probabilities, in fresh processes, with `expected`, float32 [images, classes].

    Returns the largest difference in a probability by the loader's name. Python's loader predicts all images, the
    others the first 8, because their possible faults do not depend on the image. Raises ParityError if a difference is
    above `tolerance`, a loader fails or a process fails; OutOfMemoryError.
    """
    few = (images[:_FEW], expected[:_FEW])
    # In parallel, because each load takes as long as the prediction of dozens of images.
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
    """The result of a process. Raises ParityError if it failed or ended abruptly, OutOfMemoryError."""
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
    """Raise ParityError if a loader failed, DifferentAnswersError if the difference is not within `tolerance`."""
    if isinstance(outcome, str):
        raise ParityError(
            f"The exported model does not answer, asked by {loader}: {outcome}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        )
    # In this form of the comparison, NaN fails.
    if not outcome <= tolerance:
        raise DifferentAnswersError(
            f"The exported model's probabilities, asked by {loader}, differ from the evaluated model's by "
            f"{outcome:.3g} on {images} held-out images; at most {tolerance:g} is accepted.",
            advice="Nothing was published. Check layers of the base network that behave differently when reloaded.",
        )


def compare(exported: Path, images: list[bytes], expected: np.ndarray, loaders: Sequence[Loader]) -> Outcomes:
    """Run these loaders in this process and compare each with `expected`. Raises OutOfMemoryError."""
    batches = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
    found: Outcomes = {}
    for loader in loaders:
        answers = loader.answers(exported, batches)
        # NaN must fail the proof; depending on the order, Python's max() would drop it.
        found[loader.name] = answers if isinstance(answers, str) else float(np.max(np.abs(answers - expected)))
    return found
