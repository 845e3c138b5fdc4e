"""How fast `transfer predict` is: against the bare forward pass, and on several workers against one.

    python -m scripts.bench.predict                                  # 10,000 images, MobileNetV2 at 224 pixels
    python -m scripts.bench.predict --images 600 --rounds 1 --json

In this order, alternating arms in each round:

    bare      files read and decoded in threads, then the fast forward pass of the published model: nothing else
    predict   the whole job in this process, to a folder of parts; both load the model
    actors    the same parts on one actor of one CPU, and on two, after all of them have started
    sleeping  units that sleep instead of computing, on one actor and on 16: what handing out costs

Ratios are medians over rounds of ratios within a round. The base has random weights, for nothing is downloaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.common import ratio, timed, write_jpegs
from transfer.catalog.model import BaseDigest, ModelVersion, Provenance, ReportedMetrics, TrainedWeights
from transfer.config import Config, WorkersConfig, parse_config
from transfer.registry.predict import PARTS_AT_ONCE, TASK, predict
from transfer.registry.prediction_file import Columns
from transfer.registry.prediction_parts import Part, listed_images
from transfer.registry.prediction_work import PredictionWork
from transfer.registry.promote import promote
from transfer.registry.versions import commit_version, download_version, load_version, upload_version
from transfer.runtime.actors import Actors, Task
from transfer.runtime.parallel import in_order
from transfer.runtime.startup import import_tensorflow, own_process
from transfer.storage import open_store

SLEEPERS = 16
SLEEP_S = 0.25
UNITS_A_SLEEPER = 40


def main() -> None:
    options = arguments()
    own_process()
    import_tensorflow()
    with tempfile.TemporaryDirectory(prefix="transfer-bench-") as name:
        folder = Path(name)
        write_jpegs(folder / "images", range(options.images), width=500, height=375)
        config = published(options.network, options.image_size, folder)
        bare, predicted = in_this_process(config, folder, rounds=options.rounds)
        one, two = on_actors(config, folder, rounds=options.rounds)
    alone, together = sleeping()
    result = {
        "network": options.network,
        "image_size": options.image_size,
        "images": options.images,
        "images_a_second": {"bare": options.images / min(bare), "predict": options.images / min(predicted)},
        "predict / bare": ratio(bare, predicted),
        "two actors / one": ratio(one, two),
        f"{SLEEPERS} sleeping actors / one": together / alone,
        f"{SLEEPERS} sleeping actors / without any pause": together * SLEEP_S / SLEEPERS,
    }
    print(json.dumps(result, indent=None if options.json else 2))


def published(network: str, image_size: int, folder: Path) -> Config:
    """A configuration whose storage has one version, which serves."""
    from transfer.backbone.backbone import pooled
    from transfer.backbone.load import load_backbone
    from transfer.registry.export import export
    from transfer.training.model import TransferModel, build_head

    source = {
        "name": "bench",
        "storage": str(folder / "storage"),
        "dataset": {"source": str(folder / "images")},
        "base": {"model": network, "weights": "none", "image_size": image_size},
    }
    config = parse_config(source)
    base = pooled(load_backbone(config.base), "average")
    head = build_head(config.head, feature_shape=tuple(base.network.output_shape[1:]), class_count=5, seed=0)
    export(TransferModel(base, head, list("abcde"), digest=base.digest()), folder / "model", provenance={})
    provenance = Provenance(
        run="none",
        dataset="bench/00000001",
        base=BaseDigest(model=network, sha256="0" * 64),
        weights=TrainedWeights(checkpoint=1, sha256="0" * 64),
        report=1,
        metrics=ReportedMetrics(loss=0.0, accuracy=0.0, split="test"),
        config={},
    )
    store = open_store(config.storage)
    version = upload_version(store, "bench", folder / "model", classes=list("abcde"), provenance=provenance)
    promote(store, commit_version(store, version), reason="the only one")
    return config


def in_this_process(config: Config, folder: Path, *, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the bare loop and of the whole job, by round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    images = [str(folder / "images")]
    for round_ in range(rounds):
        output = f"{folder}/out-{round_}/"
        arms = [partial(bare, config, folder), partial(predict, config, images=images, output=output)]
        for index in (0, 1) if round_ % 2 else (1, 0):
            seconds[index].append(timed(arms[index]))
    return seconds


def bare(config: Config, folder: Path) -> None:
    """Predict all images with nothing around the forward pass."""
    from transfer.dataset.batches import decoded
    from transfer.features.forward import forward_of
    from transfer.registry.published_model import FittedWork, PublishedModel

    store = open_store(config.storage)
    version = load_version(store, config.name, None)
    with tempfile.TemporaryDirectory() as files, ThreadPoolExecutor(os.cpu_count()) as pool:
        model = PublishedModel(version, download_version(store, version, Path(files) / "model"))
        forward = forward_of(FittedWork(model), engine=config.features.engine)

        def load(path: Path) -> np.ndarray:
            return decoded(path.read_bytes(), image_input=model.image_input)

        started = (pool.submit(load, path) for path in sorted((folder / "images").rglob("*.jpg")))
        images = in_order(started, Future.result, is_full=lambda ahead: len(ahead) > forward.batch_size)
        for _ in forward.map(batches(images, forward.batch_size)):
            pass


def batches(images: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    while batch := list(itertools.islice(images, size)):
        yield np.stack(batch)


class PinnedWork(PredictionWork):
    """A worker on one CPU of its own: libraries start as many threads as they see CPUs."""

    def __init__(self, config: Config, version: ModelVersion, cpus: str) -> None:
        for cpu in sorted(os.sched_getaffinity(0)):
            with suppress(FileExistsError):
                Path(cpus, str(cpu)).touch(exist_ok=False)
                # Also the threads that Ray has started already, which do the parts.
                for thread in Path("/proc/self/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {cpu})
                break
        super().__init__(config, version, Columns(), None)

    def __call__(self, part: Part) -> Any:
        """Predict a part, and tell where."""
        super().__call__(part)
        return os.getpid()


def on_actors(config: Config, folder: Path, *, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds on one actor and on two, by round."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    version = load_version(open_store(config.storage), config.name, None)
    parts = list(listed_images(config, version, [str(folder / "images")]).parts())
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds):
        for count in (1, 2) if round_ % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as cpus:
                workers = WorkersConfig(count=count)
                with Actors(
                    PinnedWork, config, version, cpus, workers=workers, task=TASK, at_once=PARTS_AT_ONCE
                ) as actors:
                    wait_for(actors, parts[:1] * PARTS_AT_ONCE * count, count)
                    seconds[count - 1].append(timed(partial(exhaust, actors, parts)))
    ray.shutdown()
    return seconds


class Sleeper:
    """A forward pass that sleeps instead of computing: for one unit at a time, whatever was handed out ahead."""

    def __init__(self) -> None:
        self._forward_pass = threading.Lock()

    def __call__(self, seconds: float) -> int:
        """Sleep, and tell where."""
        with self._forward_pass:
            time.sleep(seconds)
        return os.getpid()


def sleeping() -> tuple[float, float]:
    """Units a second of one sleeping actor, and of all together."""
    import ray

    ray.init(address="local", num_cpus=SLEEPERS, include_dashboard=False, log_to_driver=False, logging_level="warning")
    rates = []
    for count in (1, SLEEPERS):
        workers = WorkersConfig(count=count)
        with Actors(Sleeper, workers=workers, task=Task("sleep"), at_once=PARTS_AT_ONCE) as actors:
            wait_for(actors, [SLEEP_S] * PARTS_AT_ONCE * count, count)
            units = [SLEEP_S] * UNITS_A_SLEEPER * count
            rates.append(len(units) / timed(partial(exhaust, actors, units)))
    ray.shutdown()
    return rates[0], rates[1]


def wait_for(actors: Actors[Any, int], units: list[Any], count: int) -> None:
    """Have units done until as many processes have done some."""
    seen: set[int] = set()
    while len(seen) < count:
        seen |= {process for _, process in actors.map(units)}


def exhaust(actors: Actors[Any, int], units: list[Any]) -> None:
    for _ in actors.map(units):
        pass


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="MobileNetV2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
