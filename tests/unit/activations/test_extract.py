"""Extraction: everything that is missing is computed, from as near as possible, and nothing else is done."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, write_some_digits
from transfer.activations import extract as extract_module
from transfer.activations import inventory as inventory_module
from transfer.activations.extract import Extractor, prefixes_of
from transfer.activations.inventory import Inventory
from transfer.activations.kept import Kept
from transfer.activations.prefix import View
from transfer.activations.request import Extraction, Request
from transfer.activations.rows import Piece, RowBatch, image_rows, seen_as
from transfer.backbone.graph import cut_points
from transfer.backbone.load import load_backbone
from transfer.backbone.pooling import pooled
from transfer.config import ActivationsConfig, AugmentationConfig
from transfer.dataset.ingest import ingest
from transfer.dataset.shards import read_shard
from transfer.errors import CorruptObjectError
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


@pytest.fixture(scope="module")
def backbone(ingested):
    return pooled(load_backbone(ingested[0].base), "average")


@pytest.fixture(scope="module")
def request_prefixes(ingested, backbone):
    """Call with unfreeze depths: their prefixes, by default for maps of float32."""

    def prefixes(*depths, **changes):
        config = ingested[0].model_copy(update=changes)
        return prefixes_of(config, backbone, [Request("train", depth) for depth in depths])["train"]

    return prefixes


def keep(store, shards, prefixes):
    """Extract as a new job does. Which engine runs is not the subject here, and TensorFlow is ready sooner."""
    return Extractor(store, engine="tensorflow").extract(shards, prefixes)


def kept_values(store, prefix, shards):
    kept = Kept(store, prefix)
    return np.concatenate([np.concatenate(kept.open(shard).parts()) for shard in shards])


def kept_labels(store, prefix, shards):
    return [label for shard in shards for label in Kept(store, prefix).open(shard).labels.tolist()]


def stored_labels(store, shards):
    return [label for shard in shards for label in read_shard(store, shard)["label"].to_pylist()]


def images_of(store, shards, rows_at_a_time=50):
    batches = image_rows(store, shards, image_size=32, batch_size=rows_at_a_time)
    return np.concatenate([batch.values for batch in batches])


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * scale, rtol=0)


def forbid(monkeypatch, *names):
    """Make what extraction calls fail."""

    def fail(*_args, **_options):
        raise AssertionError("This was not to be called.")

    for name in names:
        monkeypatch.setattr(extract_module, name, fail)


def rows_of(shards):
    return sum(shard.rows for shard in shards)


def test_one_pass_over_the_images_keeps_every_cut_row_for_row(digits, request_prefixes):
    store, dataset = digits
    shards = dataset.shards_of("train")
    prefixes = request_prefixes(0, 1, 3)
    done = keep(store, shards, prefixes)
    assert len(shards) >= 3
    assert any(shard.rows % 32 for shard in shards)
    assert (done.images, done.shards_computed) == (rows_of(shards), 3 * len(shards))
    assert (done.shards_found, done.shards_resumed) == (0, 0)
    images = images_of(store, shards)
    for prefix in prefixes:
        assert_close(kept_values(store, prefix, shards), prefix(tf.constant(images)).numpy())
    assert kept_labels(store, prefixes[0], shards) == stored_labels(store, shards)


def test_a_second_time_nothing_is_done_but_a_listing_a_prefix(digits, request_prefixes, monkeypatch):
    store, dataset = digits
    shards = dataset.shards_of("train")
    prefixes = request_prefixes(0, 1)
    keep(store, shards, prefixes)
    forbid(monkeypatch, "build_forward", "image_rows", "kept_rows")
    listed = []
    monkeypatch.setattr(store, "list", lambda prefix, real=store.list: listed.append(prefix) or real(prefix))
    assert keep(store, shards, prefixes) == Extraction(shards_found=2 * len(shards))
    assert sorted(listed) == sorted(f"activations/{prefix.digest}/" for prefix in prefixes)


def test_only_shards_that_lack_something_are_read_and_only_what_they_lack_is_computed(digits, request_prefixes):
    store, dataset = digits
    first, second, third = dataset.shards_of("train")[:3]
    maps, vectors = request_prefixes(2, 0, activations=ActivationsConfig(map_dtype="float16"))
    keep(store, [first], [maps, vectors])
    keep(store, [second], [maps])
    done = keep(store, [first, second, third], [maps, vectors])
    # What is kept in float16 is no start: it is rounded.
    assert done.images == second.rows + third.rows
    assert (done.shards_found, done.shards_computed, done.shards_resumed) == (3, 3, 0)


def test_a_later_cut_resumes_from_an_earlier_one_that_another_job_kept(digits, request_prefixes, monkeypatch):
    store, dataset = digits
    shards = dataset.shards_of("train")
    keep(store, shards, request_prefixes(3))
    forbid(monkeypatch, "image_rows")
    vectors, maps = request_prefixes(0, 2)
    done = keep(store, shards, [vectors, maps])
    assert (done.images, done.shards_resumed) == (rows_of(shards), 2 * len(shards))
    images = images_of(store, shards)
    for prefix in (vectors, maps):
        assert_close(kept_values(store, prefix, shards), prefix(tf.constant(images)).numpy())
    assert kept_labels(store, vectors, shards) == stored_labels(store, shards)


def test_each_shard_starts_at_the_nearest_cut_that_is_kept_for_it(digits, request_prefixes):
    store, dataset = digits
    shards = dataset.shards_of("train")
    far, near, vectors = request_prefixes(3, 1, 0)
    keep(store, shards[:2], [far])
    keep(store, shards[:1], [near])
    streams = {stream.shards: stream for stream in Inventory(store).plan(shards[:3], [vectors])}
    assert streams[shards[0],].start.digest == near.digest
    assert streams[shards[1],].start.digest == far.digest
    assert streams[shards[2],].start is None


def test_an_extractor_starts_from_what_it_has_kept_itself(digits, request_prefixes):
    store, dataset = digits
    shards = dataset.shards_of("train")[:1]
    extractor = Extractor(store, engine="tensorflow")
    maps, vectors = request_prefixes(2, 0)
    extractor.extract(shards, [maps])
    assert extractor.extract(shards, [vectors]).shards_resumed == 1


def test_outputs_that_start_at_the_same_place_are_one_pass_over_all_their_shards(digits, request_prefixes):
    store, dataset = digits
    shards = dataset.shards_of("train")
    early, middle, late, vectors = request_prefixes(3, 2, 1, 0)
    keep(store, shards, [middle])
    streams = Inventory(store).plan(shards, [early, middle, late, vectors])
    found = [(stream.start and stream.start.digest, stream.prefixes, stream.shards) for stream in streams]
    assert found == [(None, (early,), tuple(shards)), (middle.digest, (late, vectors), tuple(shards))]


def test_the_network_is_searched_for_cuts_once_however_many_shards_there_are(digits, request_prefixes, monkeypatch):
    store, dataset = digits
    shards = dataset.shards_of("train")
    assert len(shards) > 1
    searched = []
    monkeypatch.setattr(inventory_module, "cut_points", lambda *network: searched.append(1) or cut_points(*network))
    (stream,) = Inventory(store).plan(shards, request_prefixes(0))
    assert len(stream.shards) == len(shards)
    assert len(searched) == 1


def test_only_the_very_same_network_is_a_start(digits, request_prefixes, ingested):
    store, dataset = digits
    shards = dataset.shards_of("train")[:1]
    keep(store, shards, request_prefixes(3))
    (vectors,) = request_prefixes(0)
    assert [stream.start is None for stream in Inventory(store).plan(shards, [vectors])] == [False]

    viewed = vectors.seen_as(View(AUGMENTATION, seed=0, index=0))
    assert [stream.start for stream in Inventory(store).plan(shards, [viewed])] == [None]

    other = pooled(load_backbone(ingested[0].base), "average")
    kernel = other.network.get_layer("block1_conv1").kernel
    kernel.assign(kernel * 1.001)
    (with_other_weights,) = prefixes_of(ingested[0], other, [Request("train", 0)])["train"]
    assert [stream.start for stream in Inventory(store).plan(shards, [with_other_weights])] == [None]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_start_that_is_damaged_is_discarded_and_pixels_are_used(digits, request_prefixes, damage):
    store, dataset = digits
    shards = dataset.shards_of("train")
    maps, vectors = request_prefixes(2, 0)
    keep(store, shards, [maps])
    content = min(Path(store.uri, "activations", maps.digest).glob("*.arrow"))
    if damage == "gone":
        content.unlink()
    else:
        content.chmod(0o644)
        content.write_bytes(content.read_bytes()[::-1])
    done = keep(store, shards, [vectors])
    assert (done.shards_computed, done.shards_resumed) == (len(shards), len(shards) - 1)
    assert len(Kept(store, maps).shards()) == len(shards) - 1
    assert_close(kept_values(store, vectors, shards), vectors(tf.constant(images_of(store, shards))).numpy())


def test_a_damaged_image_shard_is_an_error_that_names_it(digits, request_prefixes):
    store, dataset = digits
    first, second = dataset.shards_of("train")[:2]
    path = Path(store.uri, second.name)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptObjectError, match=second.name):
        keep(store, [first, second], request_prefixes(0))


def with_batch_size(monkeypatch, batch_size):
    def build(*args, real=extract_module.build_forward, **options):
        forward = real(*args, **options)
        forward.batch_size = batch_size
        return forward

    monkeypatch.setattr(extract_module, "build_forward", build)


def views_of(prefix, count, seed=0):
    return [prefix.seen_as(View(AUGMENTATION, seed=seed, index=index)) for index in range(count)]


def test_a_view_looks_the_same_whatever_the_batch_and_what_else_is_extracted(
    digits, request_prefixes, monkeypatch, tmp_path
):
    store, dataset = digits
    shards = dataset.shards_of("train")
    (prefix,) = views_of(request_prefixes(0)[0], 1)
    keep(store, shards, [prefix])
    together = kept_values(store, prefix, shards)
    shutil.rmtree(Path(store.uri, "activations"))
    with_batch_size(monkeypatch, 13)
    keep(store, shards[1:2], views_of(request_prefixes(0)[0], 3))
    first = shards[0].rows
    assert_close(kept_values(store, prefix, shards[1:2]), together[first : first + shards[1].rows])


def test_views_differ_from_each_other_and_from_the_images(digits, request_prefixes):
    store, dataset = digits
    shards = dataset.shards_of("train")[:2]
    (plain,) = request_prefixes(0)
    prefixes = [plain, *views_of(plain, 2), *views_of(plain, 1, seed=1)]
    done = keep(store, shards, prefixes)
    assert done.images == len(prefixes) * rows_of(shards)
    values = [kept_values(store, prefix, shards) for prefix in prefixes]
    for index, one in enumerate(values):
        for other in values[:index]:
            assert (np.abs(one - other).max(axis=1) > 0).all()


def test_each_row_of_a_shard_is_changed_in_its_own_way(ingested):
    shard = ingested[1].shards[0].model_copy(update={"rows": 70})
    one = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    batch = RowBatch(np.stack([one] * 70), (Piece(shard, 0, np.zeros(70, np.int32)),))
    (viewed,) = seen_as(View(AUGMENTATION, seed=0, index=0), iter([batch]), image_size=32)
    assert len(np.unique(viewed.values.reshape(70, -1), axis=0)) == 70


def test_views_of_a_prefix_share_its_forward_pass(digits, request_prefixes, monkeypatch):
    store, dataset = digits
    built = []

    def build(prefixes, real=extract_module.build_forward, **options):
        built.append(options["rows"])
        return real(prefixes, **options)

    monkeypatch.setattr(extract_module, "build_forward", build)
    shards = dataset.shards_of("train")[:2]
    extractor = Extractor(store, engine="tensorflow")
    extractor.extract(shards, views_of(request_prefixes(0)[0], 3))
    extractor.extract(dataset.shards_of("validation"), request_prefixes(0))
    assert built == [3 * rows_of(shards)]


def test_requests_become_prefixes_by_split(ingested, backbone):
    config = ingested[0].model_copy(update={"augmentation": AUGMENTATION})
    requests = [Request("train", 0, view=1), Request("validation", 0), Request("validation", "all")]
    found = prefixes_of(config, backbone, requests)
    assert [prefix.view for prefix in found["train"]] == [View(AUGMENTATION, config.training.seed, 1)]
    assert [prefix.view for prefix in found["validation"]] == [None]
    assert found["train"][0].seen_as(None).digest == found["validation"][0].digest
