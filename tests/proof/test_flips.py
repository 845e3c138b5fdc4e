"""One bit of what is stored is flipped: that is noticed before it is used, or done without, and said."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.proof.amount import trials
from tests.proof.driver import DATASET, MODEL, RUN, job_with_a_past
from tests.proof.figures import note
from tests.proof.flipping import flipped, sampled
from tests.sourcing import read_ledger
from transfer.catalog import layout
from transfer.catalog.run import Progress
from transfer.config import ImageInput
from transfer.dataset.file_cache import SeenLog
from transfer.dataset.index import INDEX_SCHEMA, read_images
from transfer.dataset.manifest import Reject, Shard, load_dataset, write_ledger
from transfer.dataset.row_groups import Footers
from transfer.dataset.shards import read_columns, read_row_group, read_shard, write_shard
from transfer.errors import CorruptObjectError
from transfer.nights.claim import held_claim, take_claim
from transfer.nights.records import NightPlan, list_nights, work_on_night
from transfer.registry.retention_log import read_retention
from transfer.registry.versions import (
    current_promotion,
    download_version,
    list_versions,
    load_version,
    published_version,
)
from transfer.storage import open_store, sha256_hex
from transfer.storage.disk_cache import DiskCache
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import hold_to_base, load_run, open_run, pinned_base

SAMPLED = trials(40, 2_000)
ROWS = [
    {
        "key": f"{row}.png",
        "image": np.random.default_rng(row).bytes(900),
        "label": row % 5,
        "sha256": sha256_hex(bytes([row])),
        "width": 16,
        "height": 16,
    }
    for row in range(100)
]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Storage with one of everything that is read as a document."""
    job = job_with_a_past(tmp_path_factory.mktemp("past"))
    job.do()
    store, config = open_store(job.config.storage), job.config
    run = open_run(store, config, load_dataset(store, DATASET), run_id="a-run")
    hold_to_base(run, "0" * 64)
    for number in (1, 2, 3):
        weights = [np.random.default_rng(number).normal(size=(100, 100)).astype(np.float32)]
        Checkpoints(run).save(number, Progress(global_step=number), weights=weights, optimizer=weights * 2)
    with work_on_night(store, config) as (night, _):
        night.put_plan(NightPlan(dataset=2, champion=1, promotion=1, warm_start=None, trains="digest"))
    return job


@pytest.fixture
def store(job):
    return open_store(job.config.storage)


@pytest.fixture
def folder(job):
    return Path(job.config.storage.uri)


def newest_checkpoint(store, job):
    return Checkpoints(load_run(store, "a-run", job.config)).newest()


READERS = {
    f"datasets/{DATASET}": lambda store, _: load_dataset(store, DATASET),
    f"models/{MODEL}/versions": lambda store, _: list(list_versions(store, MODEL)),
    f"models/{MODEL}/promotions": lambda store, _: current_promotion(store, MODEL),
    f"models/{MODEL}/retention": lambda store, _: read_retention(store, MODEL),
    f"models/{MODEL}/published/{RUN}": lambda store, _: published_version(store, MODEL, RUN),
    "runs/a-run": lambda store, job: load_run(store, "a-run", job.config),
    "runs/a-run/base": lambda store, job: pinned_base(load_run(store, "a-run", job.config)),
    f"nights/{MODEL}": lambda store, _: list(list_nights(store, MODEL)),
    f"nights/{MODEL}/00000001": lambda store, _: next(list_nights(store, MODEL)).plan(),
    f"nights/{MODEL}/00000001/claims": lambda store, _: held_claim(store, f"nights/{MODEL}/00000001/claims"),
}


@pytest.mark.parametrize("where", READERS)
def test_each_flipped_byte_of_a_document_is_noticed_by_who_reads_it(job, store, folder, where):
    path, read = max((folder / where).glob("*.json")), READERS[where]
    read(store, job)
    positions, bits = range(0, path.stat().st_size, trials(5, 1)), trials(1, 4)
    for position in positions:
        for bit in range(bits):
            with flipped(path, position, (position + bit) % 8), pytest.raises(CorruptObjectError, match=path.name):
                read(store, job)
    read(store, job)
    note(f"document in {where}", flips=len(positions) * bits, failures=0)


def test_a_flipped_byte_of_a_claim_keeps_everybody_from_the_night(store, folder):
    path = max((folder / f"nights/{MODEL}/00000001/claims").glob("*.json"))
    with flipped(path, 40, 1), pytest.raises(CorruptObjectError, match=path.name):
        take_claim(store, f"nights/{MODEL}/00000001/claims", expires_s=1, what="night 1")


def flips_of_newest_checkpoint(run, folder):
    """The document, every byte or so, and the arrays that it names, sampled."""
    newest = run.checkpoints.read(3)
    document = folder / "runs/a-run/checkpoints/00000003.json"
    for position in range(0, document.stat().st_size, trials(10, 1)):
        yield document, position, position % 8
    for key in ("weights", "optimizer"):
        path = folder / f"runs/a-run/arrays/{newest[key]}.npz"
        for position, bit in sampled(path, SAMPLED // 2):
            yield path, position, bit


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before_which_is_said(job, store, folder, caplog):
    assert newest_checkpoint(store, job).number == 3
    flips = list(flips_of_newest_checkpoint(load_run(store, "a-run", job.config), folder))
    for path, position, bit in flips:
        with flipped(path, position, bit), caplog.at_level(logging.WARNING):
            found = newest_checkpoint(store, job)
        assert (found.number, found.progress.global_step) == (2, 2)
        assert "Checkpoint 3 of run a-run is damaged" in caplog.text
        caplog.clear()
    assert newest_checkpoint(store, job).number == 3
    note("newest checkpoint", flips=len(flips), failures=0)


def test_training_that_comes_to_the_arrays_of_a_damaged_checkpoint_again_can_keep_them(job, store, folder):
    run = load_run(store, "a-run", job.config)
    path = folder / f"runs/a-run/arrays/{run.checkpoints.read(3)['weights']}.npz"
    with flipped(path, 100, 1):
        weights = [np.random.default_rng(3).normal(size=(100, 100)).astype(np.float32)]
        Checkpoints(run).save(4, Progress(global_step=3), weights=weights, optimizer=weights * 2)
        assert newest_checkpoint(store, job).number == 4
    np.testing.assert_array_equal(newest_checkpoint(store, job).weights[0], weights[0])
    (folder / "runs/a-run/checkpoints/00000004.json").unlink()


@pytest.mark.parametrize("of", ["document", "files"])
def test_what_is_known_of_files_is_not_used_when_it_is_damaged(job, store, folder, of, caplog):
    log = SeenLog(store, DATASET, source="folder", check="check")
    entry = max((folder / f"seen/{DATASET}").glob("*.json"))
    known = store.read(f"seen/{DATASET}/{entry.name}")
    source, check = (known.decode().split(f'"{key}": "')[1].split('"')[0] for key in ("source", "check"))
    log = SeenLog(store, DATASET, source=source, check=check)
    assert len(log.read().marks) == 12
    path = entry if of == "document" else folder / known.decode().split('"files": "')[1].split('"')[0]
    flips = list(sampled(path, SAMPLED))
    for position, bit in flips:
        with flipped(path, position, bit), caplog.at_level(logging.WARNING):
            assert len(log.read().marks) == 0
        assert "cannot be used, all are read again" in caplog.text
        caplog.clear()
    note(f"what is known of files, {of}", flips=len(flips), failures=0)


@pytest.fixture(scope="module")
def shard(job):
    return write_shard(open_store(job.config.storage), ROWS, split="train")


def test_flips_of_a_shard_are_noticed(store, folder, shard):
    for position, bit in sampled(folder / shard.name, SAMPLED):
        with flipped(folder / shard.name, position, bit), pytest.raises(CorruptObjectError, match=shard.sha256):
            read_shard(store, shard)
    note("shard", flips=SAMPLED, failures=0)


def test_flips_of_a_row_group_and_of_the_footer_are_noticed(store, folder, shard):
    def read_all():
        footers = Footers()
        groups = range(len(shard.row_groups.rows))
        return [read_row_group(store, shard, group, columns=["image", "label"], footers=footers) for group in groups]

    read_all()
    for position, bit in sampled(folder / shard.name, SAMPLED):
        if position < len(b"PAR1"):
            continue  # No row group, and not read.
        with flipped(folder / shard.name, position, bit), pytest.raises(CorruptObjectError, match=shard.sha256):
            read_all()
    note("row groups and footer of a shard", flips=SAMPLED, failures=0)


def test_flips_where_only_a_few_columns_are_read_are_noticed_or_change_nothing(store, folder, shard):
    columns = ["sha256", "label"]
    whole, noticed, flips = read_columns(store, shard, columns), 0, 4 * SAMPLED
    for position, bit in sampled(folder / shard.name, flips):
        with flipped(folder / shard.name, position, bit):
            try:
                assert read_columns(store, shard, columns) == whole
            except CorruptObjectError:
                noticed += 1
    assert flips / 50 < noticed < flips  # Most of the bytes are images and were not asked for.
    note("a shard's columns", flips=flips, noticed=noticed, failures=0)


def test_the_shards_of_a_damaged_part_of_an_index_are_looked_into_which_is_said(job, store, folder, caplog):
    dataset = load_dataset(store, DATASET)
    known = read_images(store, dataset, INDEX_SCHEMA.names)
    part = dataset.index[0]
    for position, bit in sampled(folder / part.name, SAMPLED):
        with flipped(folder / part.name, position, bit), caplog.at_level(logging.WARNING):
            assert read_images(store, dataset, INDEX_SCHEMA.names) == known
        assert f"{part.name} in {store.uri} is damaged" in caplog.text
        caplog.clear()
    note("part of an index", flips=SAMPLED, failures=0)


def test_flips_of_a_model_are_noticed_before_it_is_loaded(store, folder, tmp_path):
    version = load_version(store, MODEL)
    for file in version.files:
        path = folder / version.folder / file.name
        for position, bit in sampled(path, SAMPLED // len(version.files)):
            with flipped(path, position, bit), pytest.raises(CorruptObjectError, match=file.name):
                download_version(store, version, tmp_path)
    note("model files", flips=SAMPLED // len(version.files) * len(version.files), failures=0)


def test_flips_of_a_ledger_are_noticed(store, folder):
    name = write_ledger(store, [Reject(f"{n}.png", "unreadable", "why") for n in range(2000)])
    for position, bit in sampled(folder / name, SAMPLED):
        with flipped(folder / name, position, bit), pytest.raises(CorruptObjectError, match=name):
            read_ledger(store, name)
    note("ledger of rejects", flips=SAMPLED, failures=0)


def test_flips_in_the_local_tier_are_noticed_and_the_object_is_fetched_again(tmp_path, caplog):
    content = np.random.default_rng(0).bytes(100_000)
    sha256, tier = sha256_hex(content), DiskCache(tmp_path, max_size_bytes=10**6)
    fetched = []

    def opened():
        return tier.open(sha256, lambda path: fetched.append(path.write_bytes(content))).read()

    assert opened() == content == opened()
    assert len(fetched) == 1
    for position, bit in sampled(tmp_path / sha256, SAMPLED):
        path = tmp_path / sha256
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        assert opened() == content
        assert "was damaged and is fetched again" in caplog.text
        caplog.clear()
    assert len(fetched) == 1 + SAMPLED
    note("object in the local tier", flips=SAMPLED, failures=0)


def test_flips_of_cached_features_are_noticed(store, folder):
    import keras

    from transfer.backbone.files import RANGES
    from transfer.features.frozen import FrozenPart
    from transfer.features.store import FeatureStore

    pixels = keras.Input((8, 8, 3))
    network = keras.Model(pixels, keras.layers.Conv2D(4, 3, strides=2)(pixels))
    part = FrozenPart(base="tiny", image_input=ImageInput(8, 8), preprocess=RANGES["0..1"], network=network)
    cached = FeatureStore(store, part)
    images = Shard(name="shards/a", sha256="a" * 64, split="train", rows=200, size_bytes=1)
    with cached.writer(images) as writer:
        writer.append(np.random.default_rng(0).normal(size=(200, *part.shape)), np.zeros(200, np.int32))
    for path in (folder / "features" / part.digest).iterdir():
        if path.name != Path(layout.features_description(part.digest)).name:  # It says what it is, for people.
            for position, bit in sampled(path, SAMPLED):
                with flipped(path, position, bit), pytest.raises(CorruptObjectError):
                    cached.open(images)
    assert len(cached.open(images)) == 200
    note("cached features and their entry", flips=2 * SAMPLED, failures=0)
