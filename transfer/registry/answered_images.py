"""Images with a model's answers: checked, decoded, in batches for the model, refused ones back in their places.

The prediction job and `predict` of the Python product both ask this way, so both give a file the same answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from transfer.dataset.manifest import Reject
from transfer.dataset.refusals import RejectedImage
from transfer.registry.published_model import BATCH_SIZE, Batch
from transfer.runtime.parallel import in_order

Answer = TypeVar("Answer")
AnsweredImage = tuple[str, Answer | Reject]
"""Key of an image, with what the model answers about it, or why the image was refused."""
ReadableImage = tuple[str, Callable[[], bytes | Reject]]
"""Key of an image, and how its file is read: its bytes, or why it cannot be read."""
Prepared = tuple[bytes, np.ndarray] | RejectedImage
"""The bytes that an ingest would store and the decoded image, or why it is refused."""
_Ready = tuple[bytes, np.ndarray] | Reject

THREADS = 8
"""That read and decode: more than a small machine has CPUs, because a bucket answers in some ten milliseconds."""


def answered_images(
    images: Iterable[ReadableImage],
    *,
    prepare: Callable[..., Prepared],
    answer: Callable[[Iterator[Batch]], Iterable[Iterable[Answer]]],
) -> Iterator[list[AnsweredImage[Answer]]]:
    """Yield all images with their answers, in order and in batches.

    The images are read, checked and decoded in threads, a batch ahead of `answer`; if that takes batches ahead, too,
    all of it overlaps with prediction. `prepare`: `checked_and_decoded` but for its arguments `data` and `key`.
    `answer`: from batches to the answers about each of their images, for example probabilities float32 [n, classes].
    Raises the errors of `images` and `answer`.
    """
    # Of batches whose answers are still to come.
    waiting: deque[list[tuple[str, Reject | None]]] = deque()

    def batches(ready: Iterator[tuple[str, _Ready]]) -> Iterator[Batch]:
        while chunk := list(islice(ready, BATCH_SIZE)):
            waiting.append([(key, image if isinstance(image, Reject) else None) for key, image in chunk])
            if accepted := [image for _, image in chunk if not isinstance(image, Reject)]:
                yield [data for data, _ in accepted], np.stack([pixels for _, pixels in accepted])

    def next_answers(answers: Iterable[Answer] = ()) -> list[AnsweredImage[Answer]]:
        remaining = iter(answers)
        return [(key, refused or next(remaining)) for key, refused in waiting.popleft()]

    with ThreadPoolExecutor(THREADS) as pool:
        started = ((key, pool.submit(_ready, key, read, prepare)) for key, read in images)
        ready = in_order(started, _finished, is_full=lambda ahead: len(ahead) > BATCH_SIZE)
        try:
            for answers in answer(batches(ready)):
                while all(refused for _, refused in waiting[0]):
                    yield next_answers()
                yield next_answers(answers)
            while waiting:
                yield next_answers()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ready(key: str, read: Callable[[], bytes | Reject], prepare: Callable[..., Prepared]) -> _Ready:
    data = read()
    if isinstance(data, Reject):
        return data
    outcome = prepare(data, key=key)
    return Reject(key, outcome.reason, outcome.detail) if isinstance(outcome, RejectedImage) else outcome


def _finished(started: tuple[str, Future[_Ready]]) -> tuple[str, _Ready]:
    key, image = started
    return key, image.result()
