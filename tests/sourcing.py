"""Small sources of images for tests, and configurations that ingest them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.images import encode, picture
from transfer.catalog import layout
from transfer.config import Config, DatasetConfig, StorageConfig
from transfer.dataset.listing import list_source
from transfer.dataset.rehearsal import classes_of, known_classes, rehearse
from transfer.dataset.sources import open_source
from transfer.storage import Store

LIMIT = 1024**2
LONG_AGO_S = 1_700_000_000


def image(seed: int, size: int = 16) -> bytes:
    """A small PNG file, another one for each seed."""
    return encode(picture(size, size, seed=seed), "PNG")


def write_file(path: Path, data: bytes, *, at_s: int = LONG_AGO_S) -> None:
    """Write a file that was last changed then, in seconds since 1970."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at_s, at_s))


def write_classes(folder: Path, *, first_seed: int = 0, **counts: int) -> Path:
    """Write so many images of each class into class folders, all of them different, and all of them long ago."""
    seed = first_seed
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            write_file(folder / label / f"{seed:05d}.png", image(seed))
            seed += 1
    return folder


def config_of(source: object, storage: StorageConfig, **options: object) -> Config:
    """A configuration that ingests `source`; there is no test split unless asked for."""
    dataset = {"source": str(source), "validation": 0.3, "test": 0.0, **options}
    return Config.model_validate({"name": "pets", "storage": storage, "dataset": dataset, "base": {"model": "VGG16"}})


def everything_of(source: object, storage: StorageConfig, **options: object) -> tuple[dict[str, str], dict[str, str]]:
    """Labels by key, and reasons of rejects by key."""
    config = DatasetConfig.model_validate({"source": str(source), **options})
    with open_source(config, storage) as opened:
        listing = list_source(opened, renames=config.rename_classes)
        labels = [listing.labels[code] for code in listing.label_codes]
        entries = dict(zip(listing.keys.to_pylist(), labels, strict=True))
        rejects = {reject.key: reject.reason for reject in listing.rejects}
    assert len(entries) == len(listing)
    return entries, rejects


def bytes_of(source: object, storage: StorageConfig, **options: object) -> dict[str, object]:
    """What reading each key gives: bytes, or a Reject."""
    config = DatasetConfig.model_validate({"source": str(source), **options})
    with open_source(config, storage) as opened:
        listing = list_source(opened, renames={})
        keys = listing.keys.to_pylist()
        return {key: opened.read(key, max_size_bytes=LIMIT) for key in keys}


def rehearsal_of(candidates):
    """What `config check` says of listed candidates."""
    known = known_classes(candidates)
    return rehearse(candidates, known=known, classes=classes_of(candidates, known))


def read_ledger(store: Store, name: str) -> pa.Table:
    """A ledger, verified by the digest in its name. Columns: `key`, `reason`, `detail`."""
    return pq.read_table(pa.BufferReader(store.read_verified(name, layout.sha256_in(name))))
