"""Extraction in another process: it draws the same views, and what it leaves when it is killed is used."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, write_some_digits
from transfer.activations.extract import Extractor, prefixes_of
from transfer.activations.kept import Kept
from transfer.activations.prefix import View
from transfer.activations.request import Request
from transfer.activations.rows import _augment, _seed, image_rows
from transfer.backbone.load import load_backbone
from transfer.config import AugmentationConfig
from transfer.config.reference import render
from transfer.dataset.ingest import ingest
from transfer.storage import open_store

TOLERANCE = 1e-4
AUGMENTATION = AugmentationConfig(flip="horizontal", rotation_degrees=20, zoom=0.2, contrast=0.3)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A folder with digits in storage, in several shards a split, and their configuration and dataset."""
    folder = tmp_path_factory.mktemp("digits")
    source = write_some_digits(folder / "images")
    dataset = {"source": str(source), "validation": 0.2, "test": 0.2, "shard_size_bytes": 20_000}
    config = digits_config(source, str(folder / "storage"), dataset=dataset)
    return config, ingest(config, open_store(config.storage))


@pytest.fixture
def digits(ingested, tmp_path):
    """The same in a store of its own, of which nothing is kept yet."""
    config, dataset = ingested
    shutil.copytree(config.storage.uri, tmp_path / "storage")
    storage = config.storage.model_copy(update={"uri": str(tmp_path / "storage")})
    return open_store(storage), dataset


def keep(store, shards, prefixes):
    """Extract as a new job does. Which engine runs is not the subject here, and TensorFlow is ready sooner."""
    return Extractor(store, engine="tensorflow").extract(shards, prefixes)


def kept_values(store, prefix, shards):
    kept = Kept(store, prefix)
    return np.concatenate([np.concatenate(kept.open(shard).parts()) for shard in shards])


def images_of(store, shards, rows_at_a_time=50):
    batches = image_rows(store, shards, image_size=32, batch_size=rows_at_a_time)
    return np.concatenate([batch.values for batch in batches])


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * scale, rtol=0)


def rows_of(shards):
    return sum(shard.rows for shard in shards)


VIEW_ELSEWHERE = """
import sys
import numpy as np
import tensorflow as tf
from transfer.activations.prefix import View
from transfer.activations.rows import _augment, _seed
from transfer.config import AugmentationConfig
from transfer.dataset.manifest import Shard
augmentation = AugmentationConfig.model_validate_json(sys.argv[1])
seed = _seed(View(augmentation, 5, 2), Shard.model_validate_json(sys.argv[2]), 3)
images = tf.reshape(tf.range(4 * 32 * 32 * 3, dtype=tf.float32), (4, 32, 32, 3)) % 256
np.save(sys.argv[3], _augment(augmentation, 32)(images, tf.constant(seed), tf.constant([31, 0, 7, 8])).numpy())
"""


def test_a_row_looks_the_same_in_another_process(ingested, tmp_path):
    shard = ingested[1].shards[0]
    arguments = [AUGMENTATION.model_dump_json(), shard.model_dump_json(), tmp_path / "view.npy"]
    subprocess.run([sys.executable, "-c", VIEW_ELSEWHERE, *arguments], check=True, capture_output=True)
    images = tf.reshape(tf.range(4 * 32 * 32 * 3, dtype=tf.float32), (4, 32, 32, 3)) % 256
    seed = tf.constant(_seed(View(AUGMENTATION, 5, 2), shard, 3))
    here = _augment(AUGMENTATION, 32)(images, seed, tf.constant([31, 0, 7, 8])).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "view.npy"), here, atol=1e-3)
    assert (_seed(View(AUGMENTATION, 5, 2), ingested[1].shards[1], 3) != seed.numpy()).any()


KILLED = """
import os, signal, sys
from pathlib import Path
from transfer.activations import kept
from transfer.activations.extract import Extractor, prefixes_of
from transfer.activations.request import Request
from transfer.backbone.load import load_backbone
from transfer.config import load_config
from transfer.dataset.manifest import load_dataset
from transfer.storage import open_store

config = load_config(Path(sys.argv[1]))
store = open_store(config.storage)
backbone = load_backbone(config.base)
prefixes = prefixes_of(config, backbone, [Request("train", 0)])["train"]

class Mortal(kept.ShardWriter):
    def append(self, *rows):
        super().append(*rows)
        if len(list(Path(store.uri, "activations", prefixes[0].digest).glob("*.arrow"))) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

kept.ShardWriter = Mortal
Extractor(store, engine="tensorflow").extract(load_dataset(store, "digits").shards_of("train"), prefixes)
"""


def test_a_job_killed_in_the_middle_goes_on_with_the_shards_that_are_missing(digits, ingested, tmp_path):
    store, dataset = digits
    shards = dataset.shards_of("train")
    config = ingested[0].model_copy(update={"storage": ingested[0].storage.model_copy(update={"uri": store.uri})})
    (tmp_path / "config.yaml").write_text(render(config))
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "config.yaml"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    (prefix,) = prefixes_of(config, load_backbone(config.base), [Request("train", 0)])["train"]
    done = keep(store, shards, [prefix])
    assert (done.shards_found, done.shards_computed) == (2, len(shards) - 2)
    assert done.images == rows_of(shards[2:])
    assert_close(kept_values(store, prefix, shards), prefix(tf.constant(images_of(store, shards))).numpy())
