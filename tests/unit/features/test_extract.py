"""Extraction: everything that is missing is computed, from as near as possible, and nothing else is done."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.extracting import AUGMENTATION, assert_close, cache, cached_values, images_of, rows_of
from transfer.backbone.backbone import pooled
from transfer.backbone.blocks import cut_points
from transfer.backbone.load import load_backbone
from transfer.config import FeaturesConfig
from transfer.dataset.shards import read_shard
from transfer.errors import CorruptObjectError
from transfer.features import extract as extract_module
from transfer.features import inventory as inventory_module
from transfer.features.extract import Extractor, Piece, RowBatch, seen_as
from transfer.features.frozen import View, frozen_parts_of
from transfer.features.inventory import Inventory
from transfer.features.layout import Extraction, Request
from transfer.features.store import FeatureStore


@pytest.fixture(scope="module")
def backbone(ingested):
    return pooled(load_backbone(ingested[0].base), "average")


@pytest.fixture(scope="module")
def request_parts(ingested, backbone):
    """Call with unfreeze depths: their frozen parts, by default for maps of float32."""

    def frozen_parts(*depths, **changes):
        config = ingested[0].model_copy(update=changes)
        return frozen_parts_of(config, backbone, [Request("train", depth) for depth in depths])["train"]

    return frozen_parts


def cached_labels(store, frozen_part, shards):
    return [label for shard in shards for label in FeatureStore(store, frozen_part).open(shard).labels.tolist()]


def stored_labels(store, shards):
    return [label for shard in shards for label in read_shard(store, shard)["label"].to_pylist()]


def forbid(monkeypatch, *names):
    """Make what extraction calls fail."""

    def fail(*_args, **_options):
        raise AssertionError("This was not to be called.")

    for name in names:
        monkeypatch.setattr(extract_module, name, fail)


def test_one_pass_over_the_images_caches_every_cut_row_for_row(digits, request_parts):
    store, dataset = digits
    shards = dataset.shards_of("train")
    frozen_parts = request_parts(0, 1, 3)
    done = cache(store, shards, frozen_parts)
    assert len(shards) >= 3
    assert any(shard.rows % 32 for shard in shards)
    assert (done.images, done.shards_computed) == (rows_of(shards), 3 * len(shards))
    assert (done.shards_found, done.shards_resumed) == (0, 0)
    images = images_of(store, shards)
    for frozen_part in frozen_parts:
        assert_close(cached_values(store, frozen_part, shards), frozen_part(tf.constant(images)).numpy())
    assert cached_labels(store, frozen_parts[0], shards) == stored_labels(store, shards)


def test_a_second_time_nothing_is_done_but_a_listing_a_frozen_part(digits, request_parts, monkeypatch):
    store, dataset = digits
    shards = dataset.shards_of("train")
    frozen_parts = request_parts(0, 1)
    cache(store, shards, frozen_parts)
    forbid(monkeypatch, "build_forward", "image_rows", "cached_rows")
    listed = []
    monkeypatch.setattr(
        store, "list", lambda frozen_part, real=store.list: listed.append(frozen_part) or real(frozen_part)
    )
    assert cache(store, shards, frozen_parts) == Extraction(shards_found=2 * len(shards))
    assert sorted(listed) == sorted(f"features/{frozen_part.digest}/" for frozen_part in frozen_parts)


def test_only_shards_that_lack_something_are_read_and_only_what_they_lack_is_computed(digits, request_parts):
    store, dataset = digits
    first, second, third = dataset.shards_of("train")[:3]
    maps, vectors = request_parts(2, 0, features=FeaturesConfig(map_dtype="float16"))
    cache(store, [first], [maps, vectors])
    cache(store, [second], [maps])
    done = cache(store, [first, second, third], [maps, vectors])
    # What is cached in float16 is no start: it is rounded.
    assert done.images == second.rows + third.rows
    assert (done.shards_found, done.shards_computed, done.shards_resumed) == (3, 3, 0)


def test_a_later_cut_resumes_from_an_earlier_one_that_another_job_cached(digits, request_parts, monkeypatch):
    store, dataset = digits
    shards = dataset.shards_of("train")
    cache(store, shards, request_parts(3))
    forbid(monkeypatch, "image_rows")
    vectors, maps = request_parts(0, 2)
    done = cache(store, shards, [vectors, maps])
    assert (done.images, done.shards_resumed) == (rows_of(shards), 2 * len(shards))
    images = images_of(store, shards)
    for frozen_part in (vectors, maps):
        assert_close(cached_values(store, frozen_part, shards), frozen_part(tf.constant(images)).numpy())
    assert cached_labels(store, vectors, shards) == stored_labels(store, shards)


def test_each_shard_starts_at_the_nearest_cut_that_is_cached_for_it(digits, request_parts):
    store, dataset = digits
    shards = dataset.shards_of("train")
    far, near, vectors = request_parts(3, 1, 0)
    cache(store, shards[:2], [far])
    cache(store, shards[:1], [near])
    streams = {stream.shards: stream for stream in Inventory(store).plan(shards[:3], [vectors])}
    assert streams[shards[0],].start.digest == near.digest
    assert streams[shards[1],].start.digest == far.digest
    assert streams[shards[2],].start is None


def test_an_extractor_starts_from_what_it_has_cached_itself(digits, request_parts):
    store, dataset = digits
    shards = dataset.shards_of("train")[:1]
    extractor = Extractor(store, engine="tensorflow")
    maps, vectors = request_parts(2, 0)
    extractor.extract(shards, [maps])
    assert extractor.extract(shards, [vectors]).shards_resumed == 1


def test_outputs_that_start_at_the_same_place_are_one_pass_over_all_their_shards(digits, request_parts):
    store, dataset = digits
    shards = dataset.shards_of("train")
    early, middle, late, vectors = request_parts(3, 2, 1, 0)
    cache(store, shards, [middle])
    streams = Inventory(store).plan(shards, [early, middle, late, vectors])
    found = [(stream.start and stream.start.digest, stream.frozen_parts, stream.shards) for stream in streams]
    assert found == [(None, (early,), tuple(shards)), (middle.digest, (late, vectors), tuple(shards))]


def test_the_network_is_searched_for_cuts_once_however_many_shards_there_are(digits, request_parts, monkeypatch):
    store, dataset = digits
    shards = dataset.shards_of("train")
    assert len(shards) > 1
    searched = []
    monkeypatch.setattr(inventory_module, "cut_points", lambda *network: searched.append(1) or cut_points(*network))
    (stream,) = Inventory(store).plan(shards, request_parts(0))
    assert len(stream.shards) == len(shards)
    assert len(searched) == 1


def test_only_the_very_same_network_is_a_start(digits, request_parts, ingested):
    store, dataset = digits
    shards = dataset.shards_of("train")[:1]
    cache(store, shards, request_parts(3))
    (vectors,) = request_parts(0)
    assert [stream.start is None for stream in Inventory(store).plan(shards, [vectors])] == [False]

    viewed = vectors.seen_as(View(AUGMENTATION, seed=0, index=0))
    assert [stream.start for stream in Inventory(store).plan(shards, [viewed])] == [None]

    other = pooled(load_backbone(ingested[0].base), "average")
    kernel = other.network.get_layer("block1_conv1").kernel
    kernel.assign(kernel * 1.001)
    (with_other_weights,) = frozen_parts_of(ingested[0], other, [Request("train", 0)])["train"]
    assert [stream.start for stream in Inventory(store).plan(shards, [with_other_weights])] == [None]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_start_that_is_damaged_is_discarded_and_pixels_are_used(digits, request_parts, damage):
    store, dataset = digits
    shards = dataset.shards_of("train")
    maps, vectors = request_parts(2, 0)
    cache(store, shards, [maps])
    content = min(Path(store.uri, "features", maps.digest).glob("*.arrow"))
    if damage == "gone":
        content.unlink()
    else:
        content.chmod(0o644)
        content.write_bytes(content.read_bytes()[::-1])
    done = cache(store, shards, [vectors])
    assert (done.shards_computed, done.shards_resumed) == (len(shards), len(shards) - 1)
    assert len(FeatureStore(store, maps).shards()) == len(shards) - 1
    assert_close(cached_values(store, vectors, shards), vectors(tf.constant(images_of(store, shards))).numpy())


def test_a_damaged_image_shard_is_an_error_that_names_it(digits, request_parts):
    store, dataset = digits
    first, second = dataset.shards_of("train")[:2]
    path = Path(store.uri, second.name)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptObjectError, match=second.name):
        cache(store, [first, second], request_parts(0))


def with_batch_size(monkeypatch, batch_size):
    def build(*args, real=extract_module.build_forward, **options):
        forward = real(*args, **options)
        forward.batch_size = batch_size
        return forward

    monkeypatch.setattr(extract_module, "build_forward", build)


def views_of(frozen_part, count, seed=0):
    return [frozen_part.seen_as(View(AUGMENTATION, seed=seed, index=index)) for index in range(count)]


def test_a_view_looks_the_same_whatever_the_batch_and_what_else_is_extracted(
    digits, request_parts, monkeypatch, tmp_path
):
    store, dataset = digits
    shards = dataset.shards_of("train")
    (frozen_part,) = views_of(request_parts(0)[0], 1)
    cache(store, shards, [frozen_part])
    together = cached_values(store, frozen_part, shards)
    shutil.rmtree(Path(store.uri, "features"))
    with_batch_size(monkeypatch, 13)
    cache(store, shards[1:2], views_of(request_parts(0)[0], 3))
    first = shards[0].rows
    assert_close(cached_values(store, frozen_part, shards[1:2]), together[first : first + shards[1].rows])


def test_views_differ_from_each_other_and_from_the_images(digits, request_parts):
    store, dataset = digits
    shards = dataset.shards_of("train")[:2]
    (plain,) = request_parts(0)
    frozen_parts = [plain, *views_of(plain, 2), *views_of(plain, 1, seed=1)]
    done = cache(store, shards, frozen_parts)
    assert done.images == len(frozen_parts) * rows_of(shards)
    values = [cached_values(store, frozen_part, shards) for frozen_part in frozen_parts]
    for index, one in enumerate(values):
        for other in values[:index]:
            assert (np.abs(one - other).max(axis=1) > 0).all()


def test_each_row_of_a_shard_is_changed_in_its_own_way(ingested):
    shard = ingested[1].shards[0].model_copy(update={"rows": 70})
    one = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    batch = RowBatch(np.stack([one] * 70), (Piece(shard, 0, np.zeros(70, np.int32)),))
    (viewed,) = seen_as(View(AUGMENTATION, seed=0, index=0), iter([batch]))
    assert len(np.unique(viewed.values.reshape(70, -1), axis=0)) == 70


def test_views_of_a_frozen_part_share_its_forward_pass(digits, request_parts, monkeypatch):
    store, dataset = digits
    built = []

    def build(frozen_parts, real=extract_module.build_forward, **options):
        built.append(frozen_parts)
        return real(frozen_parts, **options)

    monkeypatch.setattr(extract_module, "build_forward", build)
    shards = dataset.shards_of("train")[:2]
    extractor = Extractor(store, engine="tensorflow")
    extractor.extract(shards, views_of(request_parts(0)[0], 3))
    extractor.extract(dataset.shards_of("validation"), request_parts(0))
    assert len(built) == 1


def test_requests_become_frozen_parts_by_split(ingested, backbone):
    config = ingested[0].model_copy(update={"augmentation": AUGMENTATION})
    requests = [Request("train", 0, view=1), Request("validation", 0), Request("validation", "all")]
    found = frozen_parts_of(config, backbone, requests)
    assert [frozen_part.view for frozen_part in found["train"]] == [View(AUGMENTATION, config.training.seed, 1)]
    assert [frozen_part.view for frozen_part in found["validation"]] == [None]
    assert found["train"][0].seen_as(None).digest == found["validation"][0].digest
