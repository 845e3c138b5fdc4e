"""The part of `scripts.bench.scale` that one process of a driver or a worker does at some number of shards.

    python -m scripts.bench.scale_driver '{"shards": 1000, "images_per_shard": 640}'
    python -m scripts.bench.scale_driver '{"tasks": [200, 2000]}'    # what it does for each shard that it hands to Ray

Manifests, listings and digests are synthetic; the code that handles them is the project's own. No image is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scripts.bench.scale_figures import Figures
from scripts.bench.scale_synthetic import (
    CLASSES,
    IMAGE_BYTES,
    SHARES,
    SyntheticRows,
    SyntheticSource,
    configuration,
    known,
    part_of,
    shards_of,
)
from transfer.catalog import layout
from transfer.config import parse_config
from transfer.dataset.file_cache import SeenLog
from transfer.dataset.index import INDEX_SCHEMA, read_recorded, write_index
from transfer.dataset.listing import binary_column, list_source
from transfer.dataset.manifest import Dataset, Shard, dataset_log, latest_dataset
from transfer.dataset.shard_plan import plan_shards
from transfer.dataset.shards import RecordedShard, unique_images
from transfer.dataset.splits import SPLITS
from transfer.features.layout import Extraction
from transfer.storage import Log, open_store
from transfer.storage.disk_cache import DiskCache

WINDOW_BYTES = 256 * 1024**2
BATCH = 16_384
WORKERS = 8
MOST_FETCHED = 10_000
"""Objects that are put into a disk cache."""
NEW_SHARE = 100
"""One image in so many is new tonight."""
# Planning holds columns of all images at once; fewer a shard keep 100,000 shards within this machine's memory.
MOST_PLANNED = 16_000_000
MOST_LISTED = 1_000_000
ACTORS = 4


def main() -> None:
    asked = json.loads(sys.argv[1])
    print(json.dumps(tasks(asked["tasks"]) if "tasks" in asked else driver(**asked)))


def driver(shards: int, images_per_shard: int) -> dict[str, Any]:
    """Everything that one process does at some number of shards."""
    planned = min(images_per_shard, max(MOST_PLANNED // shards, 1))
    sampled = min(shards * images_per_shard, MOST_LISTED)
    figures = Figures(shards)
    with figures.part("plan"):
        plan(figures, shards, planned)
    with figures.part("files"):
        files(figures, sampled)
    with figures.part("index"):
        index(figures, sampled, images_per_shard)
    with tempfile.TemporaryDirectory(prefix="transfer-scale-") as folder:
        with figures.part("commit"):
            commit(figures, Path(folder), shards_of(shards, images_per_shard))
        with figures.part("disk cache"):
            disk_cache(figures, Path(folder) / "disk_cache", min(shards, MOST_FETCHED))
        with figures.part("list"):
            listing(figures, Path(folder), shards)
        # TensorFlow is loaded from here on.
        with figures.part("features"):
            cached_features(figures, Path(folder), shards_of(shards, images_per_shard))
    with figures.part("order"):
        order(figures, shards_of(shards, images_per_shard))
    return figures.plain()


def plan(figures: Figures, shards: int, images_per_shard: int) -> None:
    """Which images go to which shards: on the first night, and when 1 % are new."""
    images = shards * images_per_shard
    grown = images + max(images // NEW_SHARE, 1)
    listed, checked = known(grown)
    size_bytes = images_per_shard * IMAGE_BYTES
    with figures.step("unique_images", "images", grown):
        every, _ = unique_images(listed, checked, np.arange(CLASSES, dtype=np.int32), **SHARES)
    first = part_of(every, every.rows < images)
    with figures.step("plan_shards, first night", "images", images):
        planned = plan_shards(first, [], shard_size_bytes=size_bytes)
    parent = [
        RecordedShard(
            Shard(name="", sha256=str(number), split=new.split, rows=len(new.images), size_bytes=size_bytes),
            first.words[new.images],
            first.labels[new.images],
            first.groups[new.images],
        )
        for number, new in enumerate(planned.new)
    ]
    with figures.step("plan_shards, 1 % new", "images", grown):
        tonight = plan_shards(every, parent, shard_size_bytes=size_bytes)
    if len(tonight.kept) != len(parent):
        raise SystemExit(f"{len(parent) - len(tonight.kept)} of {len(parent)} shards were planned again")


def files(figures: Figures, count: int) -> None:
    """What is done with each file of the source by its listing alone, night after night."""
    with figures.step("list the source", "images", count):
        listed = list_source(SyntheticSource(count), renames={})
    _, checked = known(count)
    with tempfile.TemporaryDirectory(prefix="transfer-scale-") as folder:
        store = open_store(parse_config(configuration(folder)).storage)
        log = SeenLog(store, "scale", source="synthetic", check="none")
        with figures.step("note what was seen", "images", count):
            log.add(listed, checked)
        with figures.step("recall what was seen", "images", count):
            recalled, unknown = log.read().recall(listed)
        if len(unknown) or len(recalled) != count:
            raise SystemExit(f"{len(unknown)} of {count} files are not known again")
        figures.facts["bytes of what was seen, an image"] = sum(i.size_bytes for i in store.list("seen/")) / count


def index(figures: Figures, images: int, images_per_shard: int) -> None:
    """What the shards of a version hold, as one object beside it, and read again."""
    listed, checked = known(images)
    shards, tables = [], {}
    for number, start in enumerate(range(0, images, images_per_shard)):
        rows = slice(start, min(start + images_per_shard, images))
        shard = Shard(name="", sha256=f"{number:064x}", split="train", rows=rows.stop - start, size_bytes=1)
        columns = {
            "sha256": binary_column(bytes(checked.digests[32 * start : 32 * rows.stop]), 32),
            "label": listed.label_codes[rows],
            "key": listed.keys.slice(start, shard.rows),
            "group": pa.nulls(shard.rows, pa.string()),
        }
        shards.append(shard)
        tables[shard.sha256] = pa.table(columns, schema=INDEX_SCHEMA)
    with tempfile.TemporaryDirectory(prefix="transfer-scale-") as folder:
        store = open_store(parse_config(configuration(folder)).storage)
        with figures.step("write the index", "images", images):
            parts = write_index(store, shards, new=tables, parent=None)
        version = dataset_of(shards).model_copy(update={"index": parts})
        with figures.step("read the index", "images", images):
            recorded = read_recorded(store, version)
        if sum(len(shard.words) for shard in recorded) != images:
            raise SystemExit("the index does not list every image")
    figures.facts["bytes of the index, an image"] = sum(part.size_bytes for part in parts) / images


def dataset_of(shards: list[Shard]) -> Dataset:
    """A version with these shards."""
    return Dataset(
        name="scale",
        number=1,
        parent=None,
        classes=[f"class-{number}" for number in range(CLASSES)],
        shards=shards,
        counts={split: {f"class-{number}": 1 for number in range(CLASSES)} for split in SPLITS},
        rejects=None,
        reject_counts={},
        source={},
    )


def commit(figures: Figures, folder: Path, shards: list[Shard]) -> None:
    """A version's document: written, read back, and sent to other processes."""
    store = open_store(parse_config(configuration(str(folder))).storage)
    dataset = dataset_of(shards)
    with figures.step("put the version", "shards", len(shards)):
        dataset_log(store, "scale").append(dataset.model_dump(), number=1)
    with figures.step("read and validate it", "shards", len(shards)):
        latest_dataset(store, "scale")
    with figures.step("pickle its shards", "shards", len(shards)):
        pickled = pickle.dumps(dataset.shards)
    figures.facts["bytes of the version"] = store.size("datasets/scale/00000001.json")
    figures.facts["bytes of its shards pickled"] = len(pickled)


def disk_cache(figures: Figures, folder: Path, objects: int) -> None:
    """Objects that a host does not have yet, without the network: what a worker does when it opens features."""
    local = DiskCache(folder, max_size_bytes=10**12)
    contents = {hashlib.sha256(content).hexdigest(): content for content in (b"%d" % n for n in range(objects))}
    with figures.step("fetch into the disk cache", "objects", objects):
        for sha256, content in contents.items():
            local.open(sha256, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]


def listing(figures: Figures, folder: Path, shards: int) -> None:
    """Listings of a local folder: all shards, and a log with as many entries."""
    store = open_store(parse_config(configuration(str(folder))).storage)
    touch(folder / "shards", [f"{number:064x}.parquet" for number in range(shards)])
    touch(folder / "runs/one/checkpoints", [f"{number:08d}.json" for number in range(1, shards + 1)])
    with figures.step("list the shards", "shards", shards):
        if sum(1 for _ in store.list("shards/")) != shards:
            raise SystemExit("not all shards were listed")
    with figures.step("find the newest entry of a log", "entries", shards):
        if Log(store, "runs/one/checkpoints").newest_number() != shards:
            raise SystemExit("another entry is the newest")


def touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def cached_features(figures: Figures, folder: Path, shards: list[Shard]) -> None:
    """Cached features of a frozen part, listed, and those that are lacking, planned."""
    from transfer.backbone.backbone import pooled
    from transfer.backbone.load import load_backbone
    from transfer.features.extract import Extractor
    from transfer.features.frozen import frozen_part_of
    from transfer.storage import put_document

    config = parse_config(configuration(str(folder)))
    store = open_store(config.storage)
    backbone = pooled(load_backbone(config.base), "average")
    frozen_part, deeper = (frozen_part_of(backbone, unfreeze, map_dtype="float16") for unfreeze in (0, 1))
    # A cut that has cached features, so that it is looked for.
    put_document(
        store, layout.features_description(deeper.digest), dataclasses.replace(deeper, dtype="float32").description
    )
    with figures.step("plan extraction, nothing cached", "shards", len(shards)):
        streams = Extractor(store).plan(shards, [frozen_part])
    if sum(len(stream.shards) for stream in streams) != len(shards):
        raise SystemExit("not everything is planned")
    lacking = max(len(shards) // NEW_SHARE, 1)
    digest = frozen_part.digest
    found = [layout.features_entry(digest, shard.sha256) for shard in shards[lacking:]]
    found += [layout.features_content(digest, shard.sha256, shard.rows, shard.sha256) for shard in shards[lacking:]]
    touch(folder / layout.features_folder(digest), [Path(name).name for name in found])
    with figures.step("list cached features, plan 1 %", "shards", len(shards)):
        streams = Extractor(store).plan(shards, [frozen_part])
    if sum(len(stream.shards) for stream in streams) != lacking:
        raise SystemExit("more is planned than is lacking")


def order(figures: Figures, shards: list[Shard]) -> None:
    """The order of an epoch, as every worker computes it."""
    from transfer.dataset.order import PADDING, Order, WorkerSlice
    from transfer.training.samples import CHUNK_SIZE_BYTES, CachedSplit

    def own_rows(shards: list[Shard]) -> int:
        order = Order(shards, batch_size=BATCH, window_size_bytes=WINDOW_BYTES, seed=0)
        own = WorkerSlice(0, WORKERS).positions(BATCH)
        return sum(int((visit.is_own & (visit.rows != PADDING)).sum()) for visit in order.epoch(0, own=own))

    images = sum(shard.rows for shard in shards)
    own_images = images // BATCH * BATCH // WORKERS + min(images % BATCH, BATCH // WORKERS)
    with figures.step(f"order of images, one of {WORKERS} workers", "images", own_images):
        visited = own_rows(shards)
    # Shards that hold a few images each, as nights with little news leave them.
    small = [shard.model_copy(update={"rows": 1, "size_bytes": IMAGE_BYTES, "row_groups": None}) for shard in shards]
    with figures.step("the same, one image a shard", "shards", len(shards)):
        own_rows(small)
    split = CachedSplit(shards, [SyntheticRows(shard.rows) for shard in shards])  # type: ignore[list-item]
    with figures.step("order of cached features, an epoch", "images", images):
        chosen = split.order(seed=0, epoch=0)
    if visited != own_images or len(chosen) != images:
        raise SystemExit("an epoch does not visit every image once")
    rows = chosen[: CHUNK_SIZE_BYTES // split.row_bytes]
    out = np.empty((len(rows), *split.shape), np.float32)
    # A chunk's size does not depend on the dataset's: what it costs should hardly either.
    with figures.step("copy a chunk of 32 MiB", "chunks", 1):
        split.take(rows, out)
    figures.facts["images of a chunk"] = len(rows)


class IdleWork:
    """Computes nothing, and has the shards that every actor of an extraction has."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    def __call__(self, shard: Shard | None) -> Extraction:
        """Answer at once."""
        return Extraction(images=shard.rows if shard else 0)


def tasks(counts: Sequence[int]) -> list[dict[str, Any]]:
    """What the driver does for each shard that it hands to an actor on Ray, with actors that do nothing."""
    import ray

    ray.init(address="local", num_cpus=ACTORS, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        return [_hand_out(count).plain() for count in counts]
    finally:
        ray.shutdown()


def _hand_out(count: int) -> Figures:
    from transfer.config import WorkersConfig
    from transfer.runtime.actors import Actors, Task

    figures, shards = Figures(count), shards_of(count, 640)
    workers = WorkersConfig(count=ACTORS)
    with figures.part("tasks"), Actors(IdleWork, shards, workers=workers, task=Task("do nothing")) as actors:
        answers = actors.map(shards)
        # All actors are up when each has answered; then only handing out is timed.
        first = min(2 * ACTORS, count - 1)
        with figures.step(f"start {ACTORS} actors", "shards", count):
            for _ in range(first):
                next(answers)
        with figures.step("hand out shards", "shards", count - first):
            handed = sum(1 for _ in answers)
    if handed != count - first:
        raise SystemExit(f"{handed} of {count - first} shards were handed out")
    return figures


if __name__ == "__main__":
    main()
