"""How fast images go in, and how fast they come out again for training.

    python -m scripts.bench.ingest                              # 2,000 JPEGs of 320 x 240, 5 rounds
    python -m scripts.bench.ingest --images 200 --rounds 3 --json

Arms of the input side, each three epochs in one stream, in batches of 32 at 224 pixels, alternating in one process:

    bare         decode + resize of bytes in memory, nothing else: the most that any pipeline can do here
    shards       this project's training input from shards in a folder; they fit into the shuffle window
    streamed     the same with a smaller window, as when a dataset is larger than memory: read again every epoch
    shards-s3    as `streamed`, from an S3 server (moto, on loopback, in another process)
    tfrecords    plain tf.data over TFRecords of the same images, in a folder

The middle 80 % of each stream is timed, so that starting threads does not count in any arm. Ratios are medians over
rounds of ratios within a round. Ingest is timed as a whole job, process start included, and so is the same one again,
which finds that no file has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from scripts.bench.common import ratio, rotated, timed, write_jpegs
from transfer.config import Config, parse_config

SIZE = 224
BATCH = 32
EPOCHS = 3
SHARD_SIZE_BYTES = 16 * 1024**2
ARMS = ("bare", "shards", "streamed", "shards-s3", "tfrecords")
RATIOS = ("shards / bare", "streamed / bare", "shards-s3 / bare", "streamed / tfrecords", "shards / tfrecords")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, s3_server() as endpoint:
        print(json.dumps(measure(Path(folder), endpoint, options), indent=None if options.json else 2))


def measure(folder: Path, endpoint: str, options: argparse.Namespace) -> dict:
    write_jpegs(folder / "images", range(options.images))
    ingest_s = [timed(partial(ingest, folder, endpoint, round_)) for round_ in range(options.rounds)]
    again_s = [timed(partial(ingest, folder, endpoint, round_)) for round_ in range(options.rounds)]
    write_tfrecords(folder)
    passes = {arm: arm_of(arm, folder, endpoint) for arm in ARMS}
    for run in passes.values():
        middle_rate(run())  # warm-up
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for round_ in range(options.rounds):
        for arm in rotated(ARMS, round_):
            rates[arm].append(middle_rate(passes[arm]()))
    return {
        "images": options.images,
        "rounds": options.rounds,
        "ingest_images_per_s": options.images / statistics.median(ingest_s),
        "images_per_s": {arm: statistics.median(values) for arm, values in rates.items()},
        "ratio": {
            **{pair: ratio(*(rates[arm] for arm in pair.split(" / "))) for pair in RATIOS},
            "ingest again / ingest": ratio(again_s, ingest_s),
        },
        "parity": parity(passes),
    }


def parity(passes: dict[str, Callable[[], Iterator[np.ndarray]]]) -> dict[str, bool]:
    """Every arm must hand over the same pixels, in whatever order: compared by the sorted sums of the images."""
    sums = {arm: np.sort(np.concatenate([batch.sum(axis=(1, 2, 3)) for batch in run()])) for arm, run in passes.items()}
    return {arm: bool(np.array_equal(sums[arm], sums["bare"])) for arm in passes if arm != "bare"}


def arm_of(arm: str, folder: Path, endpoint: str) -> Callable[[], Iterator[np.ndarray]]:
    import tensorflow as tf

    from transfer.config import ImageInput
    from transfer.dataset.batches import DEFAULT_WINDOW_SIZE_BYTES, image_batches
    from transfer.dataset.decode import load_image
    from transfer.dataset.manifest import load_dataset
    from transfer.storage import open_store

    def from_shards(where: str, window_size_bytes: int = DEFAULT_WINDOW_SIZE_BYTES) -> Iterator[np.ndarray]:
        store = open_store(config_for(folder, where, endpoint).storage)
        dataset = load_dataset(store, "bench")
        batches = image_batches(
            store,
            dataset.shards_of("train"),
            image_input=ImageInput(SIZE, SIZE),
            batch_size=BATCH,
            seed=0,
            epochs=range(EPOCHS),
            window_size_bytes=window_size_bytes,
        )
        for batch in batches:
            images, real = batch["images"].numpy(), batch["real"].numpy() > 0
            # Only an epoch's last batch has rows to leave out; a mask would copy all others, too.
            yield images if real.all() else images[real]

    def from_tfrecords() -> Iterator[np.ndarray]:
        features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
        files = sorted(str(path) for path in folder.glob("*.tfrecord"))
        records = tf.data.TFRecordDataset(files).shuffle(1024).repeat(EPOCHS)

        def load(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            parsed = tf.io.parse_single_example(record, features)
            return load_image(parsed["image"], ImageInput(SIZE, SIZE)), parsed["label"]

        images = records.map(load, num_parallel_calls=tf.data.AUTOTUNE)
        for batch, _ in images.batch(BATCH).prefetch(tf.data.AUTOTUNE):
            yield batch.numpy()

    def bare() -> Iterator[np.ndarray]:
        encoded = tf.constant([path.read_bytes() for path in sorted((folder / "images").rglob("*.jpg"))])
        images = (
            tf.data.Dataset.from_tensor_slices(encoded)
            .repeat(EPOCHS)
            .map(lambda image: load_image(image, ImageInput(SIZE, SIZE)), num_parallel_calls=tf.data.AUTOTUNE)
        )
        for batch in images.batch(BATCH).prefetch(tf.data.AUTOTUNE):
            yield batch.numpy()

    arms = {
        "bare": bare,
        "tfrecords": from_tfrecords,
        "shards": lambda: from_shards("folder"),
        "streamed": lambda: from_shards("folder", SHARD_SIZE_BYTES),
        "shards-s3": lambda: from_shards("s3", SHARD_SIZE_BYTES),
    }
    return arms[arm]


def middle_rate(batches: Iterator[np.ndarray]) -> float:
    """Images a second over the middle 80 % of a pass."""
    arrived = [(len(batch), time.perf_counter()) for batch in batches]
    edge = max(len(arrived) // 10, 1)
    middle = arrived[edge : len(arrived) - edge]
    return sum(count for count, _ in middle[1:]) / (middle[-1][1] - middle[0][1])


def config_for(folder: Path, where: str, endpoint: str) -> Config:
    bucket = {"uri": "s3://bench/data", "endpoint_url": endpoint, "cache_folder": str(folder / "cache")}
    storage = {"uri": str(folder / "storage")} if where == "folder" else bucket
    source = {"source": str(folder / "images"), "validation": 0.0, "test": 0.0, "shard_size_bytes": SHARD_SIZE_BYTES}
    return parse_config(
        {"name": "bench", "storage": storage, "dataset": source, "base": {"model": "MobileNetV2", "weights": "none"}}
    )


def ingest(folder: Path, endpoint: str, round_: int) -> None:
    """Ingest as a job in its own process; each round into a dataset and storage of its own, the first one is kept."""
    keep = round_ == 0
    for where in ("folder", "s3") if keep else ("folder",):
        target = folder if keep else folder / f"round-{round_}"
        config = config_for(target, where, endpoint)
        config = config.model_copy(
            update={"dataset": config.dataset.model_copy(update={"source": str(folder / "images")})}
        )
        code = (
            "import sys; from transfer.config import parse_config; from transfer.storage import open_store;"
            "from transfer.dataset.ingest import ingest; import json;"
            "c = parse_config(json.loads(sys.argv[1])); ingest(c, open_store(c.storage))"
        )
        subprocess.run([sys.executable, "-c", code, config.model_dump_json()], check=True, stderr=subprocess.DEVNULL)


def write_tfrecords(folder: Path) -> None:
    import tensorflow as tf

    paths = sorted((folder / "images").rglob("*.jpg"))
    for part in range(4):
        with tf.io.TFRecordWriter(str(folder / f"{part}.tfrecord")) as writer:
            for path in paths[part::4]:
                image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()]))
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(path.parent.name[-1])]))
                example = tf.train.Example(features=tf.train.Features(feature={"image": image, "label": label}))
                writer.write(example.SerializeToString())


@contextmanager
def s3_server() -> Iterator[str]:
    """The S3 emulator of moto on loopback, with made-up credentials in the environment."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        import boto3

        client = boto3.client("s3", endpoint_url=endpoint)
        for _ in range(100):
            try:
                client.create_bucket(Bucket="bench")
                break
            except Exception:  # noqa: BLE001 - whatever it is, the server is not up yet
                time.sleep(0.1)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="in one line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
