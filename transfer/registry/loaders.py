"""How programs load a SavedModel and ask it, without Keras and without this project.

Loaders differ in how they restore weights: Python's walks the object graph, a session restores variables by name. So a
model may answer one of them, and the other not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from transfer.dataset.decode import load_image
from transfer.memory import memory_explained, what_did_not_fit

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
    """Python's loader, asked for images that this project's own decoder has decoded and resized."""
    loaded = tf.saved_model.load(str(folder))
    size = int(json.loads((folder / "assets.extra/transfer.json").read_text(encoding="utf-8"))["image_size"])

    def answer(images: list[bytes]) -> np.ndarray:
        pixels = tf.stack([load_image(tf.constant(image), size) for image in images])
        return _probabilities(loaded.signatures["pixels"](images=pixels))

    return answer


PYTHON = Loader("tf.saved_model.load", load_in_python)
SESSION = Loader("a session, as in TensorFlow Serving", load_in_session)
PIXELS = Loader("the signature `pixels`", load_pixels_in_python)
LOADERS = (PYTHON, SESSION, PIXELS)


def _probabilities(answers: dict[str, tf.Tensor]) -> np.ndarray:
    return np.asarray(answers["probabilities"])
