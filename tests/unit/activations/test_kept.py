"""What is kept of a prefix: rows as they were written, entries that are found, and damage that is noticed."""

from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest

from transfer.activations import kept as kept_module
from transfer.activations.kept import Kept, description_of
from transfer.activations.prefix import Prefix, View
from transfer.backbone.preprocess import RANGES
from transfer.config import AugmentationConfig
from transfer.dataset.manifest import Shard
from transfer.errors import ActivationsError, CorruptObjectError, ObjectNotFoundError
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


def prefix_at(network, layer, **options):
    cut = keras.Model(network.inputs[0], network.get_layer(layer).output)
    return Prefix(base="tiny", image_size=8, preprocess=RANGES["0..1"], network=cut, **options)


@pytest.fixture(params=["vectors", "maps", "maps in float16"])
def prefix(request, network):
    layer, _, dtype = request.param.partition(" in ")
    return prefix_at(network, layer, dtype=dtype or "float32")


def shard_of(rows=ROWS, name="a"):
    return Shard(name=f"shards/{name * 64}.parquet", sha256=name * 64, split="train", rows=rows, size_bytes=1)


def activations_of(prefix, seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, *prefix.shape)).astype(np.float32)


def write(kept, activations, shard, *, rows_at_a_time=7):
    with kept.writer(shard) as writer:
        for start in range(0, len(activations), rows_at_a_time):
            rows = slice(start, start + rows_at_a_time)
            writer.append(activations[rows], LABELS[rows])


def kept_with_rows(store, prefix, shard=None):
    kept = Kept(store, prefix)
    write(kept, activations_of(prefix), shard or shard_of())
    return kept


@pytest.fixture
def folder(folder_storage):
    """A local store and its folder, where bytes can be damaged."""
    return open_store(folder_storage), Path(folder_storage.uri)


def content_of(folder, prefix):
    (path,) = (folder / "activations" / prefix.digest).glob("*.arrow")
    return path


@pytest.mark.parametrize("batch_rows", [1, 5, 7, 23, 1000])
def test_rows_come_back_as_they_were_written(store, prefix, batch_rows, monkeypatch):
    monkeypatch.setattr(kept_module, "BATCH_SIZE_BYTES", batch_rows * prefix.row_bytes)
    rows = kept_with_rows(store, prefix).open(shard_of())
    parts = rows.parts()
    assert [len(part) for part in parts[:-1]] == [batch_rows] * (-(-ROWS // batch_rows) - 1)
    assert all(part.dtype == prefix.dtype for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), activations_of(prefix).astype(prefix.dtype))
    np.testing.assert_array_equal(rows.labels, LABELS)
    assert len(rows) == ROWS


def test_rows_are_mapped_and_not_copied(folder, network):
    store, path = folder
    prefix = prefix_at(network, "maps")
    before = pa.total_allocated_bytes()
    rows = kept_with_rows(store, prefix).open(shard_of())
    assert pa.total_allocated_bytes() - before < content_of(path, prefix).stat().st_size / 2
    assert not any(part.flags.owndata for part in rows.parts())
    content_of(path, prefix).unlink()
    np.testing.assert_array_equal(np.concatenate(rows.parts()), activations_of(prefix))


def test_a_listing_finds_the_shards_that_are_kept_for_this_prefix_only(store, network):
    prefix = prefix_at(network, "vectors")
    kept = Kept(store, prefix)
    assert kept.shards() == set()
    for name in "ab":
        write(kept, activations_of(prefix), shard_of(name=name))
    assert kept.shards() == {"a" * 64, "b" * 64}
    assert Kept(store, prefix_at(network, "maps")).shards() == set()


def test_two_prefixes_differ_in_digest_by_anything_that_decides_what_is_kept(network):
    def view(index, **augmentation):
        return View(AugmentationConfig(**augmentation), seed=0, index=index)

    prefixes = [
        prefix_at(network, "maps"),
        prefix_at(network, "vectors"),
        prefix_at(network, "maps", dtype="float16"),
        prefix_at(network, "maps", view=view(0, flip="both")),
        prefix_at(network, "maps", view=view(1, flip="both")),
        prefix_at(network, "maps", view=view(0, zoom=0.1)),
    ]
    assert len({prefix.digest for prefix in prefixes}) == len(prefixes)
    # How many views there are changes none of them.
    more = prefix_at(network, "maps", view=view(0, flip="both", views=9))
    assert more.digest == prefixes[3].digest


def test_people_find_described_what_is_kept(store, prefix):
    kept_with_rows(store, prefix)
    found = read_document(store, f"activations/{prefix.digest}/prefix.json")
    assert found == description_of(prefix)
    assert found["base"] == "tiny"
    assert found["cut"] in {"vectors", "maps"}


def test_nothing_is_kept_of_a_block_that_raises_or_lacks_rows(store, network):
    prefix = prefix_at(network, "vectors")
    kept = Kept(store, prefix)
    wrong = np.zeros((2 * ROWS, 1), np.float32)
    with pytest.raises(ValueError, match="expected"):
        write(kept, wrong, shard_of())
    with pytest.raises(ValueError, match="23 rows were appended for a shard of 24"):
        write(kept, activations_of(prefix), shard_of(rows=ROWS + 1))
    assert list(store.list()) == []
    with pytest.raises(ObjectNotFoundError):
        kept.open(shard_of())


def test_the_first_of_two_workers_with_other_rounding_counts(store, network):
    prefix = prefix_at(network, "vectors")
    kept = kept_with_rows(store, prefix)
    write(kept, activations_of(prefix) + np.float32(1e-6), shard_of())
    np.testing.assert_array_equal(np.concatenate(kept.open(shard_of()).parts()), activations_of(prefix))


def test_a_value_that_float16_cannot_hold_is_refused_by_name(store, network):
    prefix = prefix_at(network, "maps", dtype="float16")
    with (
        pytest.raises(ActivationsError, match=r"70000.*float16.*map_dtype"),
        Kept(store, prefix).writer(shard_of()) as w,
    ):
        w.append(np.full((ROWS, *prefix.shape), 70_000, np.float32), LABELS)
    assert list(store.list()) == []


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_flipped_bit_is_noticed_and_the_shard_can_be_kept_again(folder, network):
    store, path = folder
    prefix = prefix_at(network, "vectors")
    kept = kept_with_rows(store, prefix)
    flip_a_bit(content_of(path, prefix))
    with pytest.raises(CorruptObjectError):
        kept.open(shard_of())
    assert kept.open_or_discard(shard_of()) is None
    assert kept.shards() == set()
    write(kept, activations_of(prefix), shard_of())
    np.testing.assert_array_equal(np.concatenate(kept.open(shard_of()).parts()), activations_of(prefix))


def test_several_shards_are_opened_in_their_order_and_a_damaged_one_is_missing(folder, network):
    store, path = folder
    prefix = prefix_at(network, "vectors")
    shards = [shard_of(name=name) for name in "abcdef"]
    for seed, shard in enumerate(shards):
        write(Kept(store, prefix), activations_of(prefix, seed), shard)
    flip_a_bit(path / Kept(store, prefix)._content(Kept(store, prefix)._entry(shards[2]).sha256))
    opened = Kept(store, prefix).open_all(shards)
    assert [rows is None for rows in opened] == [False, False, True, False, False, False]
    for seed in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(np.concatenate(opened[seed].parts()), activations_of(prefix, seed))


def test_damaged_content_that_an_interrupted_discard_left_does_not_stand_in_the_way(folder, network):
    store, path = folder
    prefix = prefix_at(network, "vectors")
    kept = kept_with_rows(store, prefix)
    flip_a_bit(content_of(path, prefix))
    store.remove(f"activations/{prefix.digest}/{shard_of().sha256}.json")
    write(kept, activations_of(prefix), shard_of())
    np.testing.assert_array_equal(np.concatenate(kept.open(shard_of()).parts()), activations_of(prefix))


@pytest.mark.parametrize("gone", ["entry", "content"])
def test_what_is_half_gone_is_discarded_as_a_whole(folder, network, gone):
    store, path = folder
    prefix = prefix_at(network, "vectors")
    kept = kept_with_rows(store, prefix)
    entry = path / "activations" / prefix.digest / f"{shard_of().sha256}.json"
    (entry if gone == "entry" else content_of(path, prefix)).unlink()
    with pytest.raises(ObjectNotFoundError):
        kept.open(shard_of())
    assert kept.open_or_discard(shard_of()) is None
    assert kept.shards() == set()


def test_content_of_another_length_is_named(folder, network):
    store, _ = folder
    kept = kept_with_rows(store, prefix_at(network, "vectors"))
    with pytest.raises(CorruptObjectError, match="23 rows, expected 24"):
        kept.open(shard_of(rows=ROWS + 1))


@pytest.mark.parametrize("layer", ["vectors", "flat"])
def test_content_of_another_shape_is_named(folder, network, layer):
    """What another version of the code might have left under this prefix, even if it is as many numbers."""
    store, path = folder
    maps, other = prefix_at(network, "maps"), prefix_at(network, layer)
    kept_with_rows(store, maps)
    (path / "activations" / maps.digest).rename(path / "activations" / other.digest)
    with pytest.raises(CorruptObjectError, match="does not read as activations of shape"):
        Kept(store, other).open(shard_of())


def test_memory_holds_a_record_batch_and_not_the_shard(folder, network, monkeypatch):
    monkeypatch.setattr(kept_module, "BATCH_SIZE_BYTES", 10 * prefix_at(network, "maps").row_bytes)
    store, _ = folder
    prefix = prefix_at(network, "maps")
    with Kept(store, prefix).writer(shard_of(rows=1000)) as writer:
        most = 0
        for _ in range(1000 // 4):
            writer.append(activations_of(prefix)[:4], LABELS[:4])
            most = max(most, sum(len(labels) for _, labels in writer._waiting))
    assert most < 10
