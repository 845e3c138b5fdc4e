"""How fast one worker's training input comes from S3, beside two other libraries, and what it receives for it.

    python -m scripts.bench.input                                            # moto's emulator, no other library
    uv pip install --target /tmp/rivals mosaicml-streaming webdataset
    python -m scripts.bench.input --rivals /tmp/rivals --latency-ms 0 50 --rounds 5

A server that AWS_ENDPOINT_URL names is used if there is one (`python -m scripts.s3_server`). Everything goes through a
relay that adds the latency and counts bytes. Arms, each an epoch of the same JPEGs, alternating in one process:

    bare           decode + resize of bytes in memory, nothing else: the most that any pipeline can do here
    transfer       this project: a window of a quarter of the images, an empty disk cache
    transfer-plain the same without a disk cache
    streaming      mosaicml-streaming: its shuffle and its local folder as they are by default, the folder empty
    webdataset     tar files by `curl`, the files shuffled, and a buffer of as many images as the window holds

All decode and resize with the same TensorFlow function. The middle 80 % of an epoch is timed, so that starting threads
does not count in any arm; the seconds to the first batch are shown beside. Ratios are medians over rounds of ratios
within a round. A library that cannot be imported has a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from scripts.bench.common import ratio, rotated, write_jpegs
from scripts.bench.ingest import s3_server
from scripts.bench.relay import Relay, relay_to
from scripts.tables import markdown

SIZE = 224
BATCH = 64
SHARD_SIZE_BYTES = 16 * 1024**2
"""Of all arms: as large as all of them like, and small enough for a few in a bench."""
BUCKET = "input-bench"
RIVALS = {"streaming": "streaming", "webdataset": "webdataset"}
"""Arms, and the module that each needs."""
ARMS = ("bare", "transfer", "transfer-plain", *RIVALS)


@dataclass
class Measured:
    """What the rounds of an arm showed."""

    images_per_s: list[float] = field(default_factory=list)
    first_batch_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    received_bytes: list[int] = field(default_factory=list)


class Bench:
    """The same images in the format of each arm, in a bucket behind the relay."""

    def __init__(self, folder: Path, relay: Relay, images: int) -> None:
        self._folder = folder
        self._relay = relay
        write_jpegs(folder / "images", range(images))
        self._paths = sorted((folder / "images").rglob("*.jpg"))
        self.images = images
        self.size_bytes = sum(path.stat().st_size for path in self._paths)
        self._window_bytes = self.size_bytes // 4
        self._epoch = 0

    def prepare(self, arms: list[str], *, row_group_size_bytes: int) -> None:
        """Store the images for these arms."""
        import boto3

        self._client = boto3.client("s3", endpoint_url=self._relay.url)
        self._client.create_bucket(Bucket=BUCKET)

        from transfer.dataset import row_groups

        row_groups.ROW_GROUP_SIZE_BYTES = row_group_size_bytes
        self._shards = list(self._write_shards())
        if "streaming" in arms:
            self._write_streaming()
        if "webdataset" in arms:
            self._write_webdataset()

    def arm(self, name: str) -> Callable[[], Iterator[int]]:
        """An epoch of an arm, which yields the number of images in each batch."""
        return {
            "bare": self._bare,
            "transfer": lambda: self._transfer(cache=str(self._fresh("cache"))),
            "transfer-plain": lambda: self._transfer(cache=""),
            "streaming": self._streaming,
            "webdataset": self._webdataset,
        }[name]

    def _config(self, *, cache: str) -> Any:
        from transfer.config import parse_config

        disk_cache = {"cache_folder": cache} if cache else {"cache_size_bytes": 0}
        return parse_config(
            {
                "name": "bench",
                "storage": {"uri": f"s3://{BUCKET}/transfer", "endpoint_url": self._relay.url, **disk_cache},
                "dataset": {"source": "nowhere"},
                "base": {"model": "MobileNetV2", "weights": "none"},
            }
        )

    def _fresh(self, name: str) -> Path:
        """A folder that is empty."""
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._folder / name

    def _bare(self) -> Iterator[int]:
        import tensorflow as tf

        encoded = tf.data.Dataset.from_tensor_slices(tf.constant([path.read_bytes() for path in self._paths]))
        yield from decoded(encoded)

    def _transfer(self, *, cache: str) -> Iterator[int]:
        from transfer.config import ImageInput
        from transfer.dataset.batches import image_batches
        from transfer.storage import open_store

        self._epoch += 1
        batches = image_batches(
            open_store(self._config(cache=cache).storage),
            self._shards,
            image_input=ImageInput(SIZE, SIZE),
            batch_size=BATCH,
            seed=0,
            epochs=[self._epoch],
            window_size_bytes=self._window_bytes,
        )
        for batch in batches:
            yield int(batch["real"].numpy().sum())

    def _streaming(self) -> Iterator[int]:
        import streaming

        os.environ["S3_ENDPOINT_URL"] = self._relay.url
        streaming.base.util.clean_stale_shared_memory()
        self._epoch += 1
        images = streaming.StreamingDataset(
            remote=f"s3://{BUCKET}/streaming", local=str(self._fresh("mds")), shuffle=True, batch_size=BATCH
        )
        images.next_epoch = self._epoch
        yield from decoded(dataset_of(lambda: (sample["image"] for sample in images)))

    def _webdataset(self) -> Iterator[int]:
        import webdataset

        urls = [
            self._client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key})
            for key in self._tars
        ]
        buffer = self.images // 4
        images = webdataset.WebDataset([f"pipe:curl -s -f '{url}'" for url in urls], shardshuffle=len(urls))
        yield from decoded(dataset_of(lambda: (sample["jpg"] for sample in images.shuffle(buffer))))

    def _write_shards(self) -> Iterator[Any]:
        """As an ingest writes them, without its checks."""
        from transfer.dataset.shards import write_shard
        from transfer.storage import open_store, sha256_hex

        store = open_store(self._config(cache="").storage)
        digests = {sha256_hex(path.read_bytes()): path for path in self._paths}
        a_shard = -(-self.images * SHARD_SIZE_BYTES // self.size_bytes)
        for start in range(0, self.images, a_shard):
            rows = (
                {
                    "key": str(digests[sha256].relative_to(self._folder)),
                    "image": digests[sha256].read_bytes(),
                    "label": int(digests[sha256].parent.name[-1]),
                    "sha256": sha256,
                    "width": 320,
                    "height": 240,
                }
                for sha256 in sorted(digests)[start : start + a_shard]
            )
            yield write_shard(store, rows, split="train")

    def _write_streaming(self) -> None:
        import streaming

        folder = self._fresh("mds-written")
        columns = {"image": "bytes", "label": "int"}
        with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_SIZE_BYTES) as writer:
            for path in self._paths:
                writer.write({"image": path.read_bytes(), "label": int(path.parent.name[-1])})
        for path in folder.iterdir():
            self._client.upload_file(str(path), BUCKET, f"streaming/{path.name}")

    def _write_webdataset(self) -> None:
        import webdataset

        folder = self._fresh("tars")
        folder.mkdir()
        with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=SHARD_SIZE_BYTES, verbose=0) as writer:
            for path in self._paths:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": int(path.parent.name[-1])})
        self._tars = [f"webdataset/{path.name}" for path in sorted(folder.iterdir())]
        for path in folder.iterdir():
            self._client.upload_file(str(path), BUCKET, f"webdataset/{path.name}")


def dataset_of(images: Callable[[], Iterator[bytes]]) -> Any:
    """Encoded images as a tf.data pipeline, handed over some at a time as this project does it."""
    import numpy as np
    import tensorflow as tf

    def chunks() -> Iterator[Any]:
        chunk: list[bytes] = []
        for image in images():
            chunk.append(image)
            if len(chunk) == BATCH:
                yield np.array(chunk, dtype=object)
                chunk = []
        if chunk:
            yield np.array(chunk, dtype=object)

    spec = tf.TensorSpec([None], tf.string)
    return tf.data.Dataset.from_generator(chunks, output_signature=spec).prefetch(2).unbatch()


def decoded(encoded: Any) -> Iterator[int]:
    """Decode and resize as this project does, and yield the number of images in each batch."""
    import tensorflow as tf

    from transfer.config import ImageInput
    from transfer.dataset.batches import _CALLS_PER_CPU
    from transfer.dataset.decode import load_image

    calls = _CALLS_PER_CPU * (os.cpu_count() or 1)
    images = encoded.map(lambda image: load_image(image, ImageInput(SIZE, SIZE)), num_parallel_calls=calls)
    for batch in images.batch(BATCH).prefetch(tf.data.AUTOTUNE):
        yield len(batch.numpy())


def measure(bench: Bench, relay: Relay, arms: list[str], rounds: int) -> dict[str, Measured]:
    """Run all arms in turn, once without measuring and then in each round in another order."""
    found = {arm: Measured() for arm in arms}
    for round_ in range(-1, rounds):
        for arm in rotated(arms, round_ % len(arms)):
            relay.received_bytes()
            started, cpu_before = time.perf_counter(), cpu_s()
            arrived = [(count, time.perf_counter()) for count in bench.arm(arm)()]
            used_s, received_bytes = cpu_s() - cpu_before, relay.received_bytes()
            if (images := sum(count for count, _ in arrived)) != bench.images:
                raise SystemExit(f"{arm} gave {images:,} of {bench.images:,} images")
            if round_ >= 0:
                found[arm].images_per_s.append(middle_rate(arrived))
                found[arm].first_batch_s.append(arrived[0][1] - started)
                found[arm].cpu_s.append(used_s)
                found[arm].received_bytes.append(received_bytes)
    return found


def cpu_s() -> float:
    """CPU-seconds of this process and of those that it started and that have ended; they depend less on other work."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def middle_rate(arrived: list[tuple[int, float]]) -> float:
    """Images a second over the middle 80 % of the batches."""
    edge = max(len(arrived) // 10, 1)
    middle = arrived[edge : len(arrived) - edge]
    return sum(count for count, _ in middle[1:]) / (middle[-1][1] - middle[0][1])


def table(latency_ms: float, found: dict[str, Measured], missing: dict[str, str], size_bytes: int) -> str:
    rows = [
        [
            arm,
            f"{statistics.median(measured.images_per_s):,.0f}",
            f"{ratio(measured.images_per_s, found['bare'].images_per_s):.2f}",
            f"{ratio(measured.cpu_s, found['bare'].cpu_s):.2f}",
            f"{statistics.median(measured.first_batch_s):.2f}",
            "–" if arm == "bare" else f"{statistics.median(measured.received_bytes) / size_bytes:.3f}",
        ]
        for arm, measured in found.items()
    ]
    rows += [[arm, f"not installed: {error}", "–", "–", "–", "–"] for arm, error in missing.items()]
    heads = [
        f"{latency_ms:g} ms",
        "images/s",
        "of bare",
        "CPU of bare",
        "first batch, s",
        "bytes received / bytes of images",
    ]
    return markdown(heads, rows)


def main() -> None:
    options = arguments()
    if options.rivals:
        sys.path.append(str(options.rivals))
    missing = {
        arm: str(error) for arm, module in RIVALS.items() if arm in options.arms and (error := error_of_import(module))
    }
    arms = [arm for arm in options.arms if arm not in missing]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="transfer-input-")))
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or stack.enter_context(s3_server())
        relay = stack.enter_context(relay_to(urlsplit(endpoint).netloc))
        bench = Bench(folder, relay, options.images)
        bench.prepare(arms, row_group_size_bytes=int(options.row_group_mib * 1024**2))
        results = {}
        for latency_ms in options.latency_ms:
            relay.delay(latency_ms / 1000)
            results[latency_ms] = measure(bench, relay, arms, options.rounds)
    if options.json:
        plain = {f"{latency_ms:g}": {arm: vars(m) for arm, m in found.items()} for latency_ms, found in results.items()}
        print(json.dumps({"images": bench.images, "size_bytes": bench.size_bytes, "missing": missing, "ms": plain}))
        return
    print(f"{bench.images:,} JPEGs, {bench.size_bytes:,} bytes, {options.rounds} rounds; added latency in the corner\n")
    print("\n\n".join(table(ms, found, missing, bench.size_bytes) for ms, found in results.items()))


def error_of_import(module: str) -> Exception | None:
    """Why a library cannot be used; None if it can."""
    try:
        __import__(module)
    except Exception as error:  # noqa: BLE001 - whatever its installation lacks
        return error
    return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0.0, 50.0], help="added to every request")
    parser.add_argument("--row-group-mib", type=float, default=1.0, help="of this project's shards")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--rivals", type=Path, help="folder into which the other libraries were installed")
    parser.add_argument("--json", action="store_true", help="in one line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
