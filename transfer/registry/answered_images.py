"""Images with a model's answers: checked, decoded, in batches for the model, refused ones back in their places.

The prediction job and `predict` of the Python product both ask this way, so both give a file the same answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from transfer.config import DatasetConfig, ImageInput
from transfer.dataset.batches import checked_and_decoded
from transfer.dataset.manifest import Reject
from transfer.dataset.refusals import RejectedImage
from transfer.registry.published_model import BATCH_SIZE, Batch

AnsweredImage = tuple[str, np.ndarray | Reject]
"""Key of an image, with the probability of each class by index, float32 [classes], or why the image was refused."""


def answered_images(
    images: Iterable[tuple[str, bytes | Reject]],
    *,
    image_input: ImageInput,
    limits: DatasetConfig,
    answer: Callable[[Iterator[Batch]], Iterable[np.ndarray]],
) -> Iterator[list[AnsweredImage]]:
    """Yield all images with their answers, in order and in batches.

    `images`: keys, each with the bytes of its file or why it could not be read. They are read, checked and decoded when
    `answer` takes the next batch; if it takes batches ahead, that overlaps with prediction. `image_input`: the images
    that the network takes. `limits`: the section `dataset`, as for `checked_and_decoded`. `answer`: from batches to
    probabilities float32 [n, classes] of each. Raises the errors of `images` and `answer`.
    """
    remaining = iter(images)
    # Of batches whose probabilities are still to come.
    waiting: deque[list[tuple[str, Reject | None]]] = deque()

    def batches() -> Iterator[Batch]:
        while True:
            checked, batch = _checked(islice(remaining, BATCH_SIZE), image_input, limits)
            if not checked:
                return
            waiting.append(checked)
            if batch is not None:
                yield batch

    def next_answers(probabilities: Iterable[np.ndarray] = ()) -> list[AnsweredImage]:
        rows = iter(probabilities)
        return [(key, refused or next(rows)) for key, refused in waiting.popleft()]

    for probabilities in answer(batches()):
        while all(refused for _, refused in waiting[0]):
            yield next_answers()
        yield next_answers(probabilities)
    while waiting:
        yield next_answers()


def _checked(
    images: Iterable[tuple[str, bytes | Reject]], image_input: ImageInput, limits: DatasetConfig
) -> tuple[list[tuple[str, Reject | None]], Batch | None]:
    """Each key, with the reason if its image is refused; and the others as a batch, None if there are none."""
    checked: list[tuple[str, Reject | None]] = []
    encoded: list[bytes] = []
    pixels: list[np.ndarray] = []
    for key, data in images:
        if isinstance(data, Reject):
            checked.append((key, data))
            continue
        outcome = checked_and_decoded(data, key=key, image_input=image_input, limits=limits)
        if isinstance(outcome, RejectedImage):
            checked.append((key, Reject(key, outcome.reason, outcome.detail)))
            continue
        checked.append((key, None))
        encoded.append(outcome[0])
        pixels.append(outcome[1])
    return checked, (encoded, np.stack(pixels)) if pixels else None
