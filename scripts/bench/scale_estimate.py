"""The estimate of `scripts.bench.scale`: how long nights take at a size that nothing here can run.

Each step is the largest of what it must wait for at the same time: CPU, network, GPU, or the one driver. What is not
measured by this bench is an assumption with a name, a value and where it is from; `--assume name=value` changes it.

What replicas exchange follows from the networks alone. Every step sums the gradients of all replicas. In a ring of n
each one sends, and receives, 2 (n - 1) / n times the bytes of what is trained (Patarasuk and Yuan, 2009); NCCL may
choose a tree, which sends about as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from transfer.config import BaseNetworkConfig, HeadConfig, StorageConfig
from transfer.dataset.candidates import BATCH_IMAGES
from transfer.dataset.row_groups import ROW_GROUP_SIZE_BYTES
from transfer.dataset.row_reader import MOST_READERS
from transfer.features.store import OPENED_AT_ONCE
from transfer.storage import PARALLEL
from transfer.storage.s3_transfer import _PARTS_AT_ONCE

CHOSEN = "chosen: the size that is asked for"
DEFAULT = "this project's default"
AWS_S3 = "vendor: Amazon S3's performance guidelines"
AWS_P4D = "vendor: one p4d.24xlarge"
GUESS = "guess: not measured, no GPU is here"
PAGE_KEYS = 1000
FLOAT_BYTES = 4
"""Gradients are summed in float32, with mixed precision, too: variables are float32."""


@dataclass(frozen=True)
class Assumption:
    """One input of the estimate that was not measured by the bench."""

    name: str
    value: float
    unit: str
    source: str


ASSUMPTIONS = (
    Assumption("images", 100e6, "images", CHOSEN),
    Assumption("image_bytes", 100e3, "bytes", CHOSEN),
    Assumption("hosts", 8, "hosts, a worker on each", CHOSEN),
    Assumption("gpus_per_host", 8, "GPUs", CHOSEN),
    Assumption("shard_bytes", 64 * 1024**2, "bytes", DEFAULT),
    Assumption("test_share", 0.1, "of the images", "chosen"),
    Assumption("new_share", 0.01, "of the images, each night", CHOSEN),
    Assumption("epochs", 10, "epochs of the head", "chosen"),
    Assumption("batch_size", 16_384, "images, global", "chosen: 256 a GPU"),
    Assumption("row_bytes", 1280 * 4, "bytes cached of an image", "MobileNetV2 at unfreeze 0: computed here"),
    Assumption(
        "trained_bytes", 1_281_000 * 4, "bytes of gradients", "a head for 1,000 classes on 1,280: computed here"
    ),
    Assumption("cores_per_host", 96, "CPUs as fast as one here", AWS_P4D),
    Assumption("s3_host_bytes_per_s", 100e9 / 8, "bytes/s", f"{AWS_S3}: up to 100 Gb/s an instance"),
    Assumption("s3_stream_bytes_per_s", 85e6, "bytes/s a request", f"{AWS_S3}: 85 to 90 MB/s a request"),
    Assumption("s3_request_s", 0.1, "s to the first byte", f"{AWS_S3}: roughly 100 to 200 ms"),
    Assumption("s3_gets_per_s", 5500, "requests/s a prefix", f"{AWS_S3}: at least 5,500 a prefix"),
    Assumption("all_reduce_bytes_per_s", 25e9, "bytes/s a host", f"guess: half of the 400 Gb/s of {AWS_P4D[8:]}"),
    Assumption(
        "disk_bytes_per_s", 8e9, "bytes/s a host", f"guess: half of what the NVMe of {AWS_P4D[8:]} reads in order"
    ),
    Assumption("forward_images_per_s", 4000, "images/s a GPU", GUESS),
    Assumption("step_s", 0.003, "s a step of the head", GUESS),
)


@dataclass(frozen=True)
class Measured:
    """What the bench found, as the estimate uses it."""

    seconds: Callable[[str, float], float]
    """Seconds of a step of the driver for so many units, by its name."""
    requests: Callable[[str], float]
    """Requests a shard of a job, by its name."""
    reads_in_evaluation: float
    """How often evaluation reads a shard."""
    check_cpu_s: float
    """CPU-seconds an image, of reading nothing and checking everything."""
    decode_cpu_s: float
    index_bytes: float
    """Bytes of a version's index, an image."""
    task_s: float
    """Seconds of the driver for a task on Ray."""
    sha256_bytes_per_s: float
    chunk_images: float
    max_maps: float
    maps_a_shard: float


@dataclass(frozen=True)
class Step:
    """A step of a night, and what it waits for: seconds by resource, all at the same time."""

    name: str
    waits_s: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return max(self.waits_s.values())

    def plain(self) -> dict[str, Any]:
        """In JSON's own types."""
        bound = max(self.waits_s, key=lambda name: self.waits_s[name])
        return {"step": self.name, "seconds": self.seconds, "bound_by": bound, "waits_s": self.waits_s}


def assumptions(changes: Mapping[str, float]) -> dict[str, Assumption]:
    """All of them by name, some with another value."""
    known = {assumption.name: assumption for assumption in ASSUMPTIONS}
    if unknown := changes.keys() - known.keys():
        raise SystemExit(f"--assume knows no {', '.join(sorted(unknown))}; it knows {', '.join(known)}")
    given = {name: replace(known[name], value=value, source="given") for name, value in changes.items()}
    return {**known, **given}


def estimate(measured: Measured, changes: Mapping[str, float]) -> dict[str, Any]:
    """The steps of a first night, of a night with some new images, and of other ways to train."""
    given = assumptions(changes)
    cluster = Cluster(measured, {name: assumption.value for name, assumption in given.items()})
    nights = {
        "first night": cluster.night(new=1.0),
        f"a night with {cluster['new_share']:.0%} new": cluster.night(new=cluster["new_share"]),
    }
    return {
        "assumptions": [asdict(assumption) for assumption in given.values()],
        "shards": cluster.shards,
        "nights": {name: [step.plain() for step in steps] for name, steps in nights.items()},
        "total_s": {name: sum(step.seconds for step in steps) for name, steps in nights.items()},
        "instead": [step.plain() for step in cluster.instead()],
        "limits": cluster.limits(),
    }


class Cluster:
    """The hosts, and what each step costs on them."""

    def __init__(self, measured: Measured, values: Mapping[str, float]) -> None:
        self._measured = measured
        self._values = values
        self.cores = self["hosts"] * self["cores_per_host"]
        self.gpus = self["hosts"] * self["gpus_per_host"]
        self.shards = self["images"] * self["image_bytes"] / self["shard_bytes"]
        self.trained_shards = self.shards * (1 - self["test_share"])
        self.trained_images = self["images"] * (1 - self["test_share"])
        self.cached_bytes = self.trained_images * self["row_bytes"]
        # A shard is fetched into the disk cache in parts; the next one when it is there.
        self._reader_bytes_per_s = self["s3_stream_bytes_per_s"] * _PARTS_AT_ONCE

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def night(self, *, new: float) -> list[Step]:
        """All steps, with a share of the images new; everything is, on the first night."""
        is_first = new == 1
        steps = [self._list(), *self._ingest(new, is_first=is_first), self._extract(new)]
        return [*steps, self._open(new), self._epochs(), self._evaluate()]

    def instead(self) -> list[Step]:
        """An epoch from images: every worker reads the row groups of its own rows, each by one request."""
        images = self["images"]
        size_bytes = images * self["image_bytes"] / self["hosts"]
        request_s = self["s3_request_s"] + ROW_GROUP_SIZE_BYTES / self["s3_stream_bytes_per_s"]
        return [
            Step(
                "an epoch of the head from images",
                {
                    "network": size_bytes / self["s3_host_bytes_per_s"],
                    f"{MOST_READERS} requests at once a worker": size_bytes
                    / ROW_GROUP_SIZE_BYTES
                    * request_s
                    / MOST_READERS,
                    "CPUs": images * self._measured.decode_cpu_s / self.cores,
                    "GPUs": images / self.gpus / self["forward_images_per_s"],
                },
            )
        ]

    def limits(self) -> dict[str, float]:
        """What runs full before anything is slow."""
        return {
            "maps of cached features, a worker": self.trained_shards * self._measured.maps_a_shard,
            "maps that a process may have": self._measured.max_maps,
            "bytes of cached features, a host": self.cached_bytes,
            "bytes of a disk cache, by default": StorageConfig(uri="nowhere").cache_size_bytes,
            "all-reduce bytes a step, a replica": self._all_reduce_bytes(),
        }

    def _list(self) -> Step:
        images = self["images"]
        pages = images / PAGE_KEYS * self["s3_request_s"]
        return Step(
            "list the source",
            {
                f"pages, {PARALLEL} at once": pages / PARALLEL,
                "driver": self._measured.seconds("list the source", images),
            },
        )

    def _ingest(self, new: float, *, is_first: bool) -> list[Step]:
        seconds, images = self._measured.seconds, self["images"]
        first = [Step("recall what was seen", {"driver": seconds("recall what was seen", images)})]
        before = [
            Step(
                "read the index of the version before",
                {
                    "one connection": self["images"] * self._measured.index_bytes / self["s3_stream_bytes_per_s"],
                    "driver": seconds("read the index", images),
                },
            )
        ]
        planning = "plan_shards, first night" if is_first else "plan_shards, 1 % new"
        return [
            *([] if is_first else first),
            Step("check: read and decode", self._reading(new * images, self._measured.check_cpu_s)),
            Step("note what was seen", {"driver": seconds("note what was seen", images)}),
            *([] if is_first else before),
            Step("plan shards", {"driver": seconds("unique_images", images) + seconds(planning, images)}),
            # Read again, and sent to storage.
            Step("write shards", self._reading(new * images, 0.0, copies=2)),
            Step("write the index", {"driver": seconds("write the index", new * images)}),
            Step("commit the version", {"driver": seconds("put the version", self.shards)}),
        ]

    def _reading(self, images: float, cpu_s: float, *, copies: int = 1) -> dict[str, float]:
        """Images of the source are read one after the other by each task, a task a core."""
        one_s = self["s3_request_s"] + self["image_bytes"] / self["s3_stream_bytes_per_s"] + cpu_s
        return {
            "requests, one at a time a core": images * one_s / self.cores,
            "requests/s of the bucket": images / self["s3_gets_per_s"],
            "network": copies * images * self["image_bytes"] / self["hosts"] / self["s3_host_bytes_per_s"],
            "driver": images / BATCH_IMAGES * self._measured.task_s,
        }

    def _extract(self, new: float) -> Step:
        images = new * self.trained_images
        size_bytes = images * self["image_bytes"]
        return Step(
            "extract",
            {
                "GPUs": images / self.gpus / self["forward_images_per_s"],
                "CPUs": images * self._measured.decode_cpu_s / self.cores,
                "network": size_bytes / self["hosts"] / self["s3_host_bytes_per_s"],
                "4 connections an actor": size_bytes / self.gpus / self._reader_bytes_per_s,
                "driver": new * self.trained_shards * self._measured.task_s,
            },
        )

    def _open(self, new: float) -> Step:
        """Every worker opens all cached features; `new` of them are not in the host's disk cache yet."""
        requests = self._measured.requests
        cold, warm = (requests(f"open cached features, {state} disk cache") for state in ("cold", "warm"))
        each = new * cold + (1 - new) * warm
        return Step(
            "open cached features",
            {
                "requests, 8 at once": self.trained_shards * each * self["s3_request_s"] / OPENED_AT_ONCE,
                "network": new * self.cached_bytes / self["s3_host_bytes_per_s"],
                "CPUs: SHA-256, 8 at once": self.cached_bytes / self._measured.sha256_bytes_per_s / OPENED_AT_ONCE,
                "disk": self.cached_bytes / self["disk_bytes_per_s"],
            },
        )

    def _epochs(self) -> Step:
        """Epochs of the head on cached features: first its order, then rows from anywhere, in chunks."""
        images, measured = self.trained_images, self._measured
        steps = images / self["batch_size"]
        own = images / self["hosts"]
        step_s = self["step_s"] + self._all_reduce_bytes() * self["gpus_per_host"] / self["all_reduce_bytes_per_s"]
        order_s = measured.seconds("order of cached features, an epoch", images)
        return Step(
            f"{self['epochs']:.0f} epochs of the head",
            {
                name: self["epochs"] * (order_s + seconds)
                for name, seconds in {
                    "order, then steps on the GPUs": steps * step_s,
                    "order, then copying rows": own
                    / measured.chunk_images
                    * measured.seconds("copy a chunk of 32 MiB", 1),
                    "order, then the disk": own * self["row_bytes"] / self["disk_bytes_per_s"],
                }.items()
            },
        )

    def _all_reduce_bytes(self) -> float:
        return self["trained_bytes"] * 2 * (self.gpus - 1) / self.gpus

    def _evaluate(self) -> Step:
        """The test split, a shard at a time on each GPU: its predictions, and what is counted of them."""
        images = self["images"] * self["test_share"]
        size_bytes = self._measured.reads_in_evaluation * images * self["image_bytes"]
        return Step(
            "evaluate",
            {
                "GPUs": images / self.gpus / self["forward_images_per_s"],
                "CPUs": images * self._measured.decode_cpu_s / self.cores,
                "network": size_bytes / self["hosts"] / self["s3_host_bytes_per_s"],
                "4 connections an actor": size_bytes / self.gpus / self._reader_bytes_per_s,
                "driver": self.shards * self["test_share"] * self._measured.task_s,
            },
        )


def exchanged(network: str, *, classes: int, replicas: int) -> list[dict[str, Any]]:
    """What is trained and exchanged at each depth of a network, from the head alone to everything."""
    from transfer.backbone.backbone import pooled
    from transfer.backbone.load import describe, load_backbone
    from transfer.training.model import build_head

    backbone = pooled(load_backbone(BaseNetworkConfig(model=network, weights="none")), "average")
    features = tuple(backbone.network.output_shape[1:])
    head = trained(build_head(HeadConfig(), feature_shape=features, class_count=classes, seed=0))
    described = {row["depth"]: row for row in describe(backbone)}
    rows = []
    for depth in range(len(backbone.blocks) + 1):
        _, unfrozen = backbone.cut(depth)
        parameters = head + (trained(unfrozen) if unfrozen else 0)
        rows.append(
            {
                "depth": depth,
                "block": described[depth]["block"] if depth else "head",
                "parameters": parameters,
                "all_reduce_bytes": parameters * FLOAT_BYTES * 2 * (replicas - 1) / replicas,
                "cached_bytes": cached_bytes(described, depth, features),
            }
        )
    return rows


def trained(network: Any) -> int:
    """Parameters that training changes: moving averages of BatchNorms are none of them."""
    return sum(prod(variable.shape) for variable in network.trainable_variables)


def cached_bytes(described: dict[int, dict[str, Any]], depth: int, features: tuple[int, ...]) -> int:
    """Bytes of an image's cached features at this depth, vectors in float32, maps in float16; 0 if none are."""
    if depth == 0:
        return prod(features) * FLOAT_BYTES
    return int(described[depth]["cached_bytes"]) // 2
