"""Cached features of a frozen part: rows as they were written, entries that are found, and damage that is noticed."""

from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest

from transfer.backbone.files import RANGES
from transfer.config import AugmentationConfig, ImageInput
from transfer.dataset.manifest import Shard
from transfer.errors import CorruptObjectError, FeaturesError, ObjectNotFoundError
from transfer.features import store as store_module
from transfer.features.frozen import FrozenPart, View
from transfer.features.store import FeatureStore
from transfer.storage import open_store, read_document

ROWS = 23
LABELS = np.arange(ROWS, dtype=np.int32) % 5


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    pixels = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, strides=2, name="maps")(pixels)
    ends = [keras.layers.GlobalAveragePooling2D(name="vectors")(maps), keras.layers.Flatten(name="flat")(maps)]
    return keras.Model(pixels, ends)


def part_at(network, layer, **options):
    cut = keras.Model(network.inputs[0], network.get_layer(layer).output)
    return FrozenPart(base="tiny", image_input=ImageInput(8, 8), preprocess=RANGES["0..1"], network=cut, **options)


@pytest.fixture(params=["vectors", "maps", "maps in float16"])
def frozen_part(request, network):
    layer, _, dtype = request.param.partition(" in ")
    return part_at(network, layer, dtype=dtype or "float32")


def shard_of(rows=ROWS, name="a"):
    return Shard(name=f"shards/{name * 64}.parquet", sha256=name * 64, split="train", rows=rows, size_bytes=1)


def features_of(frozen_part, seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, *frozen_part.shape)).astype(np.float32)


def write(cached, features, shard, *, rows_at_a_time=7):
    with cached.writer(shard) as writer:
        for start in range(0, len(features), rows_at_a_time):
            rows = slice(start, start + rows_at_a_time)
            writer.append(features[rows], LABELS[rows])


def with_rows(store, frozen_part, shard=None):
    cached = FeatureStore(store, frozen_part)
    write(cached, features_of(frozen_part), shard or shard_of())
    return cached


@pytest.fixture
def folder(folder_storage):
    """A local store and its folder, where bytes can be damaged."""
    return open_store(folder_storage), Path(folder_storage.uri)


def content_of(folder, frozen_part):
    (path,) = (folder / "features" / frozen_part.digest).glob("*.arrow")
    return path


@pytest.mark.parametrize("batch_rows", [1, 5, 7, 23, 1000])
def test_rows_come_back_as_they_were_written(store, frozen_part, batch_rows, monkeypatch):
    monkeypatch.setattr(store_module, "BATCH_SIZE_BYTES", batch_rows * frozen_part.row_bytes)
    rows = with_rows(store, frozen_part).open(shard_of())
    parts = list(rows.parts())
    assert [len(part) for part in parts[:-1]] == [batch_rows] * (-(-ROWS // batch_rows) - 1)
    assert all(part.dtype == frozen_part.dtype for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), features_of(frozen_part).astype(frozen_part.dtype))
    np.testing.assert_array_equal(rows.labels, LABELS)
    assert len(rows) == ROWS


def test_rows_are_mapped_and_not_copied(folder, network):
    store, path = folder
    frozen_part = part_at(network, "maps")
    before = pa.total_allocated_bytes()
    rows = with_rows(store, frozen_part).open(shard_of())
    assert pa.total_allocated_bytes() - before < content_of(path, frozen_part).stat().st_size / 2
    assert not any(part.flags.owndata for part in rows.parts())
    content_of(path, frozen_part).unlink()
    np.testing.assert_array_equal(np.concatenate(list(rows.parts())), features_of(frozen_part))


def test_rows_of_removed_images_are_not_among_those_that_count(store, network):
    frozen_part = part_at(network, "vectors")
    with_rows(store, frozen_part)
    shard = shard_of().without(np.array([0, 9, 22]))
    rows = FeatureStore(store, frozen_part).open_all([shard])[0]
    live = np.delete(np.arange(ROWS), [0, 9, 22])
    assert (len(rows), rows.labels.tolist(), rows.live.tolist()) == (20, LABELS[live].tolist(), live.tolist())
    np.testing.assert_array_equal(np.concatenate(list(rows.parts())), features_of(frozen_part)[live])
    assert sum(map(len, rows.stored_parts())) == ROWS


def test_a_listing_finds_the_shards_that_are_cached_for_this_frozen_part_only(store, network):
    frozen_part = part_at(network, "vectors")
    cached = FeatureStore(store, frozen_part)
    assert cached.shards() == set()
    for name in "ab":
        write(cached, features_of(frozen_part), shard_of(name=name))
    assert cached.shards() == {"a" * 64, "b" * 64}
    assert FeatureStore(store, part_at(network, "maps")).shards() == set()


def test_two_frozen_parts_differ_in_digest_by_anything_that_decides_what_is_cached(network):
    def view(index, **augmentation):
        return View(AugmentationConfig(**augmentation), seed=0, index=index)

    frozen_parts = [
        part_at(network, "maps"),
        part_at(network, "vectors"),
        part_at(network, "maps", dtype="float16"),
        part_at(network, "maps", view=view(0, flip="both")),
        part_at(network, "maps", view=view(1, flip="both")),
        part_at(network, "maps", view=view(0, zoom=0.1)),
    ]
    assert len({frozen_part.digest for frozen_part in frozen_parts}) == len(frozen_parts)
    # How many views there are changes none of them.
    more = part_at(network, "maps", view=view(0, flip="both", views=9))
    assert more.digest == frozen_parts[3].digest


def test_people_find_described_what_is_cached(store, frozen_part):
    with_rows(store, frozen_part)
    found = read_document(store, f"features/{frozen_part.digest}/frozen_part.json")
    assert found == frozen_part.description
    assert found["base"] == "tiny"
    assert found["cut"] in {"vectors", "maps"}


def test_nothing_is_cached_of_a_block_that_raises_or_lacks_rows(store, network):
    frozen_part = part_at(network, "vectors")
    cached = FeatureStore(store, frozen_part)
    wrong = np.zeros((2 * ROWS, 1), np.float32)
    with pytest.raises(ValueError, match="expected"):
        write(cached, wrong, shard_of())
    with pytest.raises(ValueError, match="23 rows were appended for a shard of 24"):
        write(cached, features_of(frozen_part), shard_of(rows=ROWS + 1))
    assert list(store.list()) == []
    with pytest.raises(ObjectNotFoundError):
        cached.open(shard_of())


def test_the_first_of_two_workers_with_other_rounding_counts(store, network):
    frozen_part = part_at(network, "vectors")
    cached = with_rows(store, frozen_part)
    write(cached, features_of(frozen_part) + np.float32(1e-6), shard_of())
    np.testing.assert_array_equal(np.concatenate(list(cached.open(shard_of()).parts())), features_of(frozen_part))


def test_a_value_that_float16_cannot_hold_is_refused_by_name(store, network):
    frozen_part = part_at(network, "maps", dtype="float16")
    with (
        pytest.raises(FeaturesError, match=r"70000.*float16.*map_dtype"),
        FeatureStore(store, frozen_part).writer(shard_of()) as w,
    ):
        w.append(np.full((ROWS, *frozen_part.shape), 70_000, np.float32), LABELS)
    assert list(store.list()) == []


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_flipped_bit_is_noticed_and_the_shard_can_be_cached_again(folder, network):
    store, path = folder
    frozen_part = part_at(network, "vectors")
    cached = with_rows(store, frozen_part)
    flip_a_bit(content_of(path, frozen_part))
    with pytest.raises(CorruptObjectError):
        cached.open(shard_of())
    assert cached.open_or_discard(shard_of()) is None
    assert cached.shards() == set()
    write(cached, features_of(frozen_part), shard_of())
    np.testing.assert_array_equal(np.concatenate(list(cached.open(shard_of()).parts())), features_of(frozen_part))


def test_several_shards_are_opened_in_their_order_and_a_damaged_one_is_missing(folder, network):
    store, path = folder
    frozen_part = part_at(network, "vectors")
    shards = [shard_of(name=name) for name in "abcdef"]
    for seed, shard in enumerate(shards):
        write(FeatureStore(store, frozen_part), features_of(frozen_part, seed), shard)
    opened = FeatureStore(store, frozen_part)
    flip_a_bit(path / opened._content(shards[2], opened._entry(shards[2])))
    opened = FeatureStore(store, frozen_part).open_all(shards)
    assert [rows is None for rows in opened] == [False, False, True, False, False, False]
    for seed in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(np.concatenate(list(opened[seed].parts())), features_of(frozen_part, seed))


def test_damaged_content_that_an_interrupted_discard_left_does_not_stand_in_the_way(folder, network):
    store, path = folder
    frozen_part = part_at(network, "vectors")
    cached = with_rows(store, frozen_part)
    flip_a_bit(content_of(path, frozen_part))
    store.remove(f"features/{frozen_part.digest}/{shard_of().sha256}.json")
    write(cached, features_of(frozen_part), shard_of())
    np.testing.assert_array_equal(np.concatenate(list(cached.open(shard_of()).parts())), features_of(frozen_part))


@pytest.mark.parametrize("gone", ["entry", "content"])
def test_what_is_half_gone_is_discarded_as_a_whole(folder, network, gone):
    store, path = folder
    frozen_part = part_at(network, "vectors")
    cached = with_rows(store, frozen_part)
    entry = path / "features" / frozen_part.digest / f"{shard_of().sha256}.json"
    (entry if gone == "entry" else content_of(path, frozen_part)).unlink()
    with pytest.raises(ObjectNotFoundError):
        cached.open(shard_of())
    assert cached.open_or_discard(shard_of()) is None
    assert cached.shards() == set()


def test_content_of_another_length_is_named(folder, network):
    store, _ = folder
    cached = with_rows(store, part_at(network, "vectors"))
    with pytest.raises(CorruptObjectError, match="23 rows, expected 24"):
        cached.open(shard_of(rows=ROWS + 1))


@pytest.mark.parametrize("layer", ["vectors", "flat"])
def test_content_of_another_shape_is_named(folder, network, layer):
    """What another version of the code might have left under this frozen part, even if it is as many numbers."""
    store, path = folder
    maps, other = part_at(network, "maps"), part_at(network, layer)
    with_rows(store, maps)
    (path / "features" / maps.digest).rename(path / "features" / other.digest)
    with pytest.raises(CorruptObjectError, match="do not read as features of shape"):
        FeatureStore(store, other).open(shard_of())


def test_memory_holds_a_record_batch_and_not_the_shard(folder, network, monkeypatch):
    monkeypatch.setattr(store_module, "BATCH_SIZE_BYTES", 10 * part_at(network, "maps").row_bytes)
    store, _ = folder
    frozen_part = part_at(network, "maps")
    with FeatureStore(store, frozen_part).writer(shard_of(rows=1000)) as writer:
        most = 0
        for _ in range(1000 // 4):
            writer.append(features_of(frozen_part)[:4], LABELS[:4])
            most = max(most, sum(len(labels) for _, labels in writer._waiting))
    assert most < 10
