"""Extraction in another process: it draws the same views, and what it leaves when it is killed is used."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.extracting import AUGMENTATION, assert_close, cache, cached_values, images_of, rows_of
from transfer.backbone.load import load_backbone
from transfer.config.reference import render
from transfer.features.extract import VIEW_BLOCK_ROWS, Piece, RowBatch, seen_as
from transfer.features.frozen import View, frozen_parts_of
from transfer.features.layout import Request

ROOT = Path(__file__).parents[3]

VIEW_ELSEWHERE = """
import sys
import numpy as np
import tensorflow as tf
from tests.system.features.test_extract import shown
from transfer.config import AugmentationConfig
from transfer.dataset.manifest import Shard
augmentation = AugmentationConfig.model_validate_json(sys.argv[1])
np.save(sys.argv[3], shown(augmentation, Shard.model_validate_json(sys.argv[2])))
"""


def shown(augmentation, shard):
    """Four rows of a shard, of two blocks, as one of their views shows them."""
    images = np.arange(4 * 32 * 32 * 3, dtype=np.float32).reshape(4, 32, 32, 3) % 256
    piece = Piece(shard, VIEW_BLOCK_ROWS - 2, np.zeros(4, np.int32))
    (batch,) = seen_as(View(augmentation, seed=5, index=2), iter([RowBatch(images, (piece,))]))
    return batch.values


def test_a_row_looks_the_same_in_another_process(ingested, tmp_path):
    shard, other, *_ = ingested[1].shards
    arguments = [AUGMENTATION.model_dump_json(), shard.model_dump_json(), tmp_path / "view.npy"]
    subprocess.run([sys.executable, "-c", VIEW_ELSEWHERE, *arguments], check=True, capture_output=True, cwd=ROOT)
    here = shown(AUGMENTATION, shard)
    np.testing.assert_allclose(np.load(tmp_path / "view.npy"), here, atol=1e-3)
    assert np.abs(shown(AUGMENTATION, other) - here).max() > 1


KILLED = """
import os, signal, sys
from pathlib import Path
from transfer.features import store as feature_store
from transfer.features.extract import Extractor
from transfer.features.frozen import frozen_parts_of
from transfer.features.layout import Request
from transfer.backbone.load import load_backbone
from transfer.config import load_config
from transfer.dataset.manifest import load_dataset
from transfer.storage import open_store

config = load_config(Path(sys.argv[1]))
store = open_store(config.storage)
backbone = load_backbone(config.base)
frozen_parts = frozen_parts_of(config, backbone, [Request("train", 0)])["train"]

class Mortal(feature_store.ShardWriter):
    def append(self, *rows):
        super().append(*rows)
        if len(list(Path(store.uri, "features", frozen_parts[0].digest).glob("*.arrow"))) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

feature_store.ShardWriter = Mortal
Extractor(store, engine="tensorflow").extract(load_dataset(store, "digits").shards_of("train"), frozen_parts)
"""


def test_a_job_killed_in_the_middle_goes_on_with_the_shards_that_are_missing(digits, ingested, tmp_path):
    store, dataset = digits
    shards = dataset.shards_of("train")
    config = ingested[0].model_copy(update={"storage": ingested[0].storage.model_copy(update={"uri": store.uri})})
    (tmp_path / "config.yaml").write_text(render(config))
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "config.yaml"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    (frozen_part,) = frozen_parts_of(config, load_backbone(config.base), [Request("train", 0)])["train"]
    done = cache(store, shards, [frozen_part])
    assert (done.shards_found, done.shards_computed) == (2, len(shards) - 2)
    assert done.images == rows_of(shards[2:])
    assert_close(cached_values(store, frozen_part, shards), frozen_part(tf.constant(images_of(store, shards))).numpy())
