"""A small real problem for tests: some of scikit-learn's handwritten digits, the demo's small base, sweeps on them."""

import functools
import shutil
import tempfile
from pathlib import Path

from transfer.config import Config, StorageConfig, parse_config
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import Dataset
from transfer.dataset.shards import read_columns
from transfer.demo import BASE_PATH
from transfer.storage import Store, open_store

IMAGES_PER_CLASS = 24


def write_some_digits(folder: Path) -> Path:
    """Write a few digits of each class as PNG files in class folders."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == label)[:IMAGES_PER_CLASS]:
            image = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
            image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / str(label) / f"{index:04d}.png")
    return folder


def digits_config(source: Path, storage: str | dict, **changes: object) -> Config:
    """A configuration that trains in seconds; `changes` replace whole sections."""
    return parse_config(
        {
            "name": "digits",
            "storage": storage,
            "dataset": {"source": str(source), "validation": 0.2, "test": 0.2},
            "base": {"model": str(BASE_PATH), "image_size": 32},
            "head": {"dropout": 0.2},
            "phases": [
                {"unfreeze": 0, "epochs": 2, "learning_rate": 3e-3},
                {"unfreeze": 1, "epochs": 1, "learning_rate": 1e-3},
            ],
            "training": {"batch_size": 16},
            **changes,
        }
    )


def from_scratch(path: Path) -> dict[str, object]:
    """The section `base` for random weights of three blocks with BatchNorms; `path` is written as their file."""
    import keras

    layers = keras.layers
    image = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(image)
    for number, channels in enumerate((8, 16, 24)):
        convolve = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name=f"block_{number}_conv")
        x = layers.BatchNormalization(momentum=0.9, name=f"block_{number}_norm")(convolve(x))
        x = layers.ReLU(name=f"block_{number}_relu")(x)
    keras.Model(image, x).save(path)
    return {"model": str(path), "image_size": 32, "weights": "none"}


def ingest_some_digits(folder: Path) -> tuple[Path, Dataset]:
    """Bring a few digits below `folder`, ingested into `folder/storage`; returns the source and the dataset."""
    template, dataset = ingested_digits()
    for name in ("images", "storage"):
        shutil.copytree(Path(template.name) / name, folder / name)
    return folder / "images", dataset


def hold_out(source: Path, dataset: Dataset, name: str) -> Dataset:
    """Remove the training images of one class from `ingest_some_digits`, and ingest: the others are held out."""
    config = digits_config(source, str(source.parent / "storage"))
    store = open_store(config.storage)
    for shard in dataset.shards_of("train"):
        for row in read_columns(store, shard, ["key", "label"]).to_pylist():
            if dataset.classes[row["label"]] == name:
                (source / row["key"]).unlink()
    return ingest(config, store)


@functools.cache
def ingested_digits() -> tuple[tempfile.TemporaryDirectory[str], Dataset]:
    """A folder with digits in `images`, ingested into `storage`: once a process, and copied where they are needed."""
    folder = tempfile.TemporaryDirectory(prefix="digits-")
    config = digits_config(write_some_digits(Path(folder.name) / "images"), f"{folder.name}/storage")
    return folder, ingest(config, open_store(config.storage))


def store_some_digits(store: Store) -> Dataset:
    """Bring the same dataset into another store."""
    template, dataset = ingested_digits()
    known = open_store(StorageConfig(uri=f"{template.name}/storage"))
    for item in known.list():
        store.put(item.name, known.read(item.name))
    return dataset


def ingest_digits_in_shards(folder: Path) -> tuple[Config, Dataset]:
    """A few digits below `folder`, in storage in several shards a split: their configuration and dataset."""
    source = write_some_digits(folder / "images")
    dataset = {"source": str(source), "validation": 0.2, "test": 0.2, "shard_size_bytes": 20_000}
    config = digits_config(source, str(folder / "storage"), dataset=dataset)
    return config, ingest(config, open_store(config.storage))


def copied_storage(config: Config, dataset: Dataset, to: Path) -> tuple[Store, Dataset]:
    """A copy of a configuration's storage, in which a test may keep what it likes, and the dataset in it."""
    shutil.copytree(config.storage.uri, to)
    return open_store(config.storage.model_copy(update={"uri": str(to)})), dataset


SPACE = {"phases.0.unfreeze": [0, 1], "phases.0.learning_rate": [1e-3, 1e-2]}
GRID = {"space": SPACE, "search": "grid"}


def configured(digits, sweep, *, name="digits", epochs=2, optimizer="adam", workers=0):
    """A configuration of the source and storage of `digits`, as `ingest_some_digits` gives them."""
    source, _ = digits
    phases = [{"unfreeze": 0, "epochs": epochs, "learning_rate": 1e-3, "optimizer": optimizer}]
    config = digits_config(
        source, str(source.parent / "storage"), phases=phases, sweep=sweep, workers={"count": workers}
    )
    return config.model_copy(update={"name": name})


def swept(digits, sweep, **options):
    """Run a sweep whose trials no other test has; the configuration, and what came of it."""
    from transfer.tuning.driver import run_sweep

    config = configured(digits, sweep, **options)
    return config, run_sweep(config, digits[1], open_store(config.storage))


def statuses(result):
    """How each trial ended."""
    return [trial.status for trial in result.trials]
