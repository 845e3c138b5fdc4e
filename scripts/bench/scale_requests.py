"""What `scripts.bench.scale` asks of storage: requests and bytes for each job, counted at an S3 emulator.

Datasets of two sizes are made of shards of the real size (by default 640 images of about 100 KB) with the project's own
`write_shard`. Each job then runs for real on both, with the demo's small base. The difference between both is what a
shard costs; what is left is what the job costs whatever its size.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from transfer.config import Config, ImageInput, parse_config
from transfer.dataset.index import INDEX_SCHEMA, read_images, read_recorded, write_index
from transfer.dataset.manifest import Dataset, Shard, dataset_log
from transfer.dataset.shards import write_shard
from transfer.demo import BASE_PATH
from transfer.storage import Store, open_store

BUCKET = "scale"
CLASSES = ["no", "yes"]
WIDTH, HEIGHT = 500, 375
NO_DISK_CACHE = {"cache_size_bytes": 0}


@dataclass
class Traffic:
    """What went over the network."""

    requests: Counter[str] = field(default_factory=Counter)
    """By method and the folder of the object: `GET shards`. A page of a listing is `LIST`."""
    received_bytes: int = 0
    """By the client; bodies only."""
    sent_bytes: int = 0


class Meter:
    """Stands before the emulator and counts."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._traffic = Traffic()

    @contextmanager
    def counted(self) -> Iterator[Traffic]:
        """Count what is asked while the block runs."""
        self._traffic = found = Traffic()
        yield found
        self._traffic = Traffic()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Pass a request on."""
        method = environ["REQUEST_METHOD"]
        # /<bucket>/<prefix of the storage>/<folder>/…
        folder = "".join(environ["PATH_INFO"].split("/")[3:4])
        is_listing = method == "GET" and "list-type" in parse_qs(environ.get("QUERY_STRING", ""))
        kind = "LIST" if is_listing else f"{method} {folder}"

        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            with self._lock:
                self._traffic.requests[kind] += 1
                self._traffic.received_bytes += 0 if method == "HEAD" else length
                self._traffic.sent_bytes += int(environ.get("CONTENT_LENGTH") or 0)
            return start_response(status, headers, *rest)

        return self._app(environ, answer)


@contextmanager
def counted_s3() -> Iterator[tuple[str, Meter]]:
    """Address of the emulator, which has a bucket, and its meter. Made-up credentials stand in the environment."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log(self, *_: Any) -> None:
            """Say nothing of each request."""

    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    meter = Meter(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, meter, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        yield url, meter
    finally:
        server.shutdown()
        thread.join()


class Jobs:
    """Runs the jobs on a dataset of some size, and counts."""

    def __init__(self, folder: Path, url: str, meter: Meter, *, shards: int, images: list[bytes]) -> None:
        self.shards = shards
        self.found: dict[str, Traffic] = {}
        self._folder = folder
        self._meter = meter
        self._storage = {"uri": f"s3://{BUCKET}/with-{shards}", "endpoint_url": url}
        self._images = images

    def run(self) -> None:
        """All of them, in the order in which a night has them."""
        dataset = self._write()
        self._ingest_again(dataset)
        self._from_images(dataset)
        self._from_features(dataset)
        self._evaluate(dataset)

    @contextmanager
    def _counted(self, job: str) -> Iterator[None]:
        with self._meter.counted() as traffic:
            yield
        self.found[job] = traffic

    def _config(self, cache: str, **phase: Any) -> Config:
        """`cache`: name of the disk cache's folder, none yet or one that was filled; empty: no disk cache."""
        keys = {"cache_folder": str(self._folder / f"{cache}-{self.shards}")} if cache else NO_DISK_CACHE
        return parse_config(
            {
                "name": "scale",
                "storage": {**self._storage, **keys},
                "dataset": {"source": "nowhere"},
                "base": {"model": str(BASE_PATH), "image_size": 32},
                "phases": [{"unfreeze": 0, "epochs": 1, "learning_rate": 1e-3, **phase}],
                "features": {"cache": "always"},
                "training": {"batch_size": 32},
                "workers": {"count": 0},
            }
        )

    def _store(self, cache: str = "") -> Store:
        return open_store(self._config(cache).storage)

    def _write(self) -> Dataset:
        """Shards for training and for the test, as many of each, and the version."""
        store = self._store()
        shards = []
        with self._counted("write a shard (a train and a test shard)"):
            for split in ("train", "test"):
                shards += [self._write_shard(store, split, number) for number in range(self.shards)]
        rows = sum(shard.rows for shard in shards[: self.shards])
        dataset = Dataset(
            name="scale",
            number=1,
            parent=None,
            classes=CLASSES,
            shards=shards,
            counts={split: dict.fromkeys(CLASSES, rows // 2) for split in ("train", "validation", "test")},
            rejects=None,
            reject_counts={},
            source={},
        )
        tables = read_images(store, dataset, INDEX_SCHEMA.names)
        new = {shard.sha256: table for shard, table in zip(shards, tables, strict=True)}
        dataset = dataset.model_copy(update={"index": write_index(store, shards, new=new, parent=None)})
        dataset_log(store, "scale").append(dataset.model_dump(), number=1)
        return dataset

    def _write_shard(self, store: Store, split: str, number: int) -> Shard:
        rows = (
            {
                "key": f"{split}-{number}-{row}.jpg",
                "image": image,
                # The shard's number in binary: with the same labels, cached features of two would be one object.
                "label": (number + 1) >> (row % 8) & 1,
                "sha256": f"{row:064x}",
                "width": WIDTH,
                "height": HEIGHT,
            }
            for row, image in enumerate(self._images)
        )
        return write_shard(store, rows, split=split)

    def _ingest_again(self, dataset: Dataset) -> None:
        store = self._store()
        with self._counted("what a shard of the version before holds, by its index"):
            read_recorded(store, dataset)
        with self._counted("the same, of a version without an index"):
            read_recorded(store, dataset.model_copy(update={"index": (), "shards": dataset.shards_of("train")}))

    def _from_images(self, dataset: Dataset) -> None:
        """An epoch of images, as one of one worker and as one of two see it."""
        from transfer.dataset.batches import image_batches
        from transfer.dataset.order import WorkerSlice

        def epoch(store: Store, worker: WorkerSlice) -> None:
            shards = dataset.shards_of("train")
            # A window of one shard: the dataset is larger than the window, as a large one is, and has a few lanes.
            window = min(shard.size_bytes for shard in shards)
            batches = image_batches(
                store,
                shards,
                image_input=ImageInput(32, 32),
                batch_size=32,
                worker=worker,
                seed=0,
                window_size_bytes=window,
            )
            for _ in batches:
                pass

        with self._counted("epoch from images, no disk cache"):
            epoch(self._store(), WorkerSlice())
        with self._counted("epoch from images, one of two workers, no disk cache"):
            epoch(self._store(), WorkerSlice(0, 2))
        with self._counted("epoch from images, cold disk cache"):
            epoch(self._store("images"), WorkerSlice())
        with self._counted("epoch from images, warm disk cache"):
            epoch(self._store("images"), WorkerSlice())

    def _from_features(self, dataset: Dataset) -> None:
        """Extraction, and opening cached features, as each worker does when a phase begins."""
        from transfer.training.run import open_run

        run = open_run(self._store(), self._config(""), dataset)
        inputs = self._inputs("", dataset)
        with self._counted("extraction, no disk cache"):
            inputs.extract()
        files_before = open_files()
        for name, cache in (("no disk cache", ""), ("cold disk cache", "features"), ("warm disk cache", "features")):
            fresh = self._inputs(cache, dataset)
            with self._counted(f"open cached features, {name}"):
                opened = fresh.open(0)
        self.maps, self.files = maps_of(self._folder / f"features-{self.shards}"), open_files() - files_before
        with self._counted("epoch from cached features, once opened"):
            self._epoch_from_features(opened)
        self._run = run

    def _inputs(self, cache: str, dataset: Dataset) -> Any:
        from transfer.training.feature_plan import FeaturePlan
        from transfer.training.run import open_run
        from transfer.training.shared_models import process_models

        config = self._config(cache)
        model = process_models().model(config, CLASSES)
        return FeaturePlan(open_run(open_store(config.storage), config, dataset), dataset, model)

    def _epoch_from_features(self, opened: Any) -> None:
        from transfer.training.samples import CachedBatches

        (split,) = opened.train
        batches = CachedBatches([(0, split)], batch_size=32, seed=0, max_steps=100)
        done = 0
        while done < len(split):
            done += 32 * batches.next_chunk(100).steps

    def _evaluate(self, dataset: Dataset) -> None:
        from transfer.ensure import fit
        from transfer.evaluation.evaluate import evaluate_run

        fit(self._run, dataset)
        with self._counted("evaluation from images, no disk cache"):
            evaluate_run(self._run, dataset, exactly=True)
        evaluate_run(self._run, dataset)  # caches features of the test split, if training has not
        with self._counted("evaluation from cached features, no disk cache"):
            evaluate_run(self._run, dataset)


def measure(shards: list[int], images_per_shard: int) -> dict[str, Any]:
    """Requests and bytes a shard and a job, and CPU-seconds an image."""
    image = an_image()
    images = [image] * images_per_shard
    with tempfile.TemporaryDirectory(prefix="transfer-scale-") as folder, counted_s3() as (url, meter):
        runs = []
        for count in shards:
            jobs = Jobs(Path(folder), url, meter, shards=count, images=images)
            jobs.run()
            runs.append(jobs)
    less, more = runs
    return {
        "images_per_shard": images_per_shard,
        "image_bytes": len(image),
        "shards": shards,
        "jobs": {job: of_a_shard(less.found[job], more.found[job], shards) for job in less.found},
        "maps_a_cached_shard": (more.maps - less.maps) / (shards[1] - shards[0]),
        "open_files_a_cached_shard": (more.files - less.files) / (shards[1] - shards[0]),
        "max_maps": int(Path("/proc/sys/vm/max_map_count").read_text()),
        "cpu_s": cpu_of_images(image, images_per_shard),
    }


def of_a_shard(less: Traffic, more: Traffic, shards: list[int]) -> dict[str, Any]:
    """What each further shard costs, and what is left at none."""
    step = shards[1] - shards[0]
    kinds = sorted(less.requests.keys() | more.requests.keys())
    each = {kind: (more.requests[kind] - less.requests[kind]) / step for kind in kinds}
    return {
        "requests_a_shard": {kind: count for kind, count in each.items() if count},
        "requests_besides": {kind: less.requests[kind] - each[kind] * shards[0] for kind in kinds},
        "received_bytes_a_shard": (more.received_bytes - less.received_bytes) / step,
        "sent_bytes_a_shard": (more.sent_bytes - less.sent_bytes) / step,
    }


def an_image() -> bytes:
    """A JPEG of about 100 KB."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + random.integers(-24, 25, (HEIGHT, WIDTH, 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def cpu_of_images(image: bytes, count: int) -> dict[str, float]:
    """CPU-seconds of this process, all threads together, that an image takes."""
    import tensorflow as tf

    from transfer.config import DatasetConfig
    from transfer.dataset.batches import decoded
    from transfer.dataset.ingest_tasks import Candidate, Limits, check_batch

    limits = Limits.of(DatasetConfig(source="nowhere"))
    batch = [Candidate(str(number), len(image), image) for number in range(count)]
    tf.zeros([]).numpy()
    times = {}
    for name, work in (
        ("check", lambda: check_batch(batch, source=None, limits=limits)),  # type: ignore[arg-type]
        ("decode and resize to 224", lambda: [decoded(image, image_input=ImageInput(224, 224)) for _ in range(count)]),
    ):
        work()
        started = time.process_time()
        work()
        times[name] = (time.process_time() - started) / count
    return times


def maps_of(folder: Path) -> int:
    """Memory maps of this process of files in a folder."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def open_files() -> int:
    """File descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
