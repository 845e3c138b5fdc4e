"""Small sources of images for tests, and configurations that ingest them."""

from __future__ import annotations

from pathlib import Path

from tests.dataset.images import encode, picture
from transfer.config import Config, DatasetConfig, StorageConfig
from transfer.dataset.listing import list_source
from transfer.dataset.sources import Entry, open_source

LIMIT = 1024**2


def image(seed: int, size: int = 16) -> bytes:
    """A small PNG file, another one for each seed."""
    return encode(picture(size, size, seed=seed), "PNG")


def write_classes(folder: Path, *, first_seed: int = 0, **counts: int) -> Path:
    """Write so many images of each class into class folders, all of them different."""
    seed = first_seed
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            (folder / label / f"{seed:05d}.png").write_bytes(image(seed))
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
        listing = list_source(opened)
        entries: list[Entry] = listing.entries(0, len(listing))
        rejects = {reject.key: reject.reason for reject in listing.rejects}
    assert len(entries) == len({entry.key for entry in entries})
    return {entry.key: entry.label for entry in entries}, rejects


def bytes_of(source: object, storage: StorageConfig, **options: object) -> dict[str, object]:
    """What reading each key gives: bytes, or a Reject."""
    config = DatasetConfig.model_validate({"source": str(source), **options})
    with open_source(config, storage) as opened:
        listing = list_source(opened)
        keys = listing.keys.to_pylist()
        return {key: opened.read(key, max_size_bytes=LIMIT) for key in keys}
