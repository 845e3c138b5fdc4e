"""What the benches share: images, what people write in plain Keras, times, ratios and memory."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 4
GRIDS = ((2, 3), (6, 8), (18, 24), (48, 64))
"""Of the random fields that images are made of, from coarse to fine; one for each class where classes differ."""


def write_jpegs(
    folder: Path, numbers: range, *, width: int = 320, height: int = 240, differing_share: float = 0.0
) -> None:
    """Write the images of these numbers, each always the same, into a folder for each class.

    Photographs would be better; smooth random fields with some texture compress and decode much like them. All of them
    look alike, or that share of them shows which class it belongs to, by how coarse it is; the others show any class.
    """
    from PIL import Image

    for number in numbers:
        random = np.random.default_rng(number)
        path = folder / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = (12, 16)
        if differing_share:
            shown = number if random.random() < differing_share else random.integers(CLASSES)
            grid = GRIDS[shown % CLASSES]
        field = Image.fromarray(random.integers(0, 256, (*grid, 3), dtype=np.uint8))
        smooth = np.asarray(field.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-12, 13, (height, width, 1), dtype=np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=85)


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(left, right, strict=True))


def last_json(module: str, asked: Any) -> Any:
    """The JSON that a module prints last when it is run in a fresh process, with what it is asked as JSON.

    Raises SystemExit with its errors when it fails.
    """
    command = [sys.executable, "-m", f"scripts.bench.{module}", json.dumps(asked)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{finished.stderr}\n{module} failed with exit code {finished.returncode} for {asked}")
    return json.loads(finished.stdout.splitlines()[-1])


def rotated(arms: Sequence[str], round_: int) -> list[str]:
    """The arms in a round's order. Another one comes first each round: it pays for what the others left in caches."""
    first = round_ % len(arms)
    return [*arms[first:], *arms[:first]]


def images_in(folder: Path, image_size: int, *, batch_size: int, shuffle: bool) -> Any:
    """Images as the tutorials read them; `image_dataset_from_directory` prefetches by itself."""
    import keras

    size = (image_size, image_size)
    return keras.utils.image_dataset_from_directory(
        folder, image_size=size, batch_size=batch_size, shuffle=shuffle, seed=0, verbose=False
    )


def compiled_with_cosine(model: Any, *, learning_rate: float, steps: int) -> Any:
    """The model, to be trained by Adam; a constant rate would leave more noise."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps, alpha=0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    return model


def random_base(application: str, image_size: int, images: Any) -> Any:
    """A base with random weights, for want of pretrained ones, whose BatchNorms have seen some of the images.

    Without that its activations would have no sane scale, and no head could be trained on them. `images`: batches of
    images and labels, shuffled.
    """
    import keras

    from transfer.backbone.batch_norms import estimate_statistics

    keras.utils.set_random_seed(0)
    shape = (image_size, image_size, 3)
    network = getattr(keras.applications, application)(weights=None, include_top=False, input_shape=shape)
    for batch in images.rebatch(64).take(1):
        estimate_statistics(network, batch[0] / 127.5 - 1.0)
    return network


class Stopwatch:
    """Adds up seconds by name. Time spent under a name within another one counts for the inner name only."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.ended = 0.0
        """When the last name ended, in seconds since 1970."""
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block for a name."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()
            self.ended = time.time()

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """From now on, count the calls of a module's or class's function for a name."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, watched)

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class PeakMemory:
    """Peak of this process's anonymous memory in MiB: without the pages of mapped files, which the kernel takes back.

    Looked up every few milliseconds: the kernel keeps a peak of everything that is resident only.
    """

    def __init__(self) -> None:
        self._peak_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The peak so far."""
        self._stop.set()
        self._thread.join()
        return self._peak_mib

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self._peak_mib = max(self._peak_mib, status_mib("RssAnon"))


def status_mib(field: str) -> float:
    """A size from what the kernel says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
