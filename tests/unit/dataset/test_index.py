"""The index of a dataset version: what its shards hold, without looking into them."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.sourcing import config_of, write_classes
from tests.unit.nights.versions_of import dataset_of, images
from transfer.catalog import layout
from transfer.dataset.index import INDEX_SCHEMA, ImageIndex, read_images, write_index
from transfer.dataset.ingest import ingest
from transfer.dataset.listing import binary_column
from transfer.dataset.manifest import Shard
from transfer.storage import open_store

COLUMNS = INDEX_SCHEMA.names
SHARD_SIZE_BYTES = 4_000
"""A few of the images."""


@pytest.fixture
def store(folder_storage):
    return open_store(folder_storage)


def as_of_an_earlier_release(dataset):
    """The version without its index, so that its shards are looked into."""
    return dataset.model_copy(update={"index": ()})


def listed(store, dataset):
    return [table.to_pylist() for table in read_images(store, dataset, COLUMNS)]


def test_the_index_lists_what_the_shards_hold(folder_storage, store, tmp_path):
    source = write_classes(tmp_path / "images", cat=12, dog=12)
    config = config_of(source, folder_storage, shard_size_bytes=SHARD_SIZE_BYTES, group_pattern=r"(\d)\.png$")
    dataset = ingest(config, store)
    assert len(dataset.shards) > 3
    assert listed(store, dataset) == listed(store, as_of_an_earlier_release(dataset))
    assert {row["group"] for rows in listed(store, dataset) for row in rows} == set("0123456789")


def test_a_night_looks_into_no_shard_of_the_night_before(folder_storage, store, tmp_path):
    source = write_classes(tmp_path / "images", cat=12, dog=12)
    config = config_of(source, folder_storage, shard_size_bytes=SHARD_SIZE_BYTES)
    first = ingest(config, store)
    before = listed(store, first)
    shutil.rmtree(tmp_path / "storage" / layout.SHARDS)
    assert ingest(config, store) == first
    write_classes(source, first_seed=100, cat=2)
    second = ingest(config, store)
    assert second.shards[: len(first.shards)] == first.shards
    assert listed(store, second)[: len(first.shards)] == before
    assert listed(store, second)[len(first.shards) :] == [
        table.to_pylist()
        for table in read_images(store, as_of_an_earlier_release(second), COLUMNS, second.shards[len(first.shards) :])
    ]


def test_a_version_of_an_earlier_release_has_an_index_from_its_next_version_on(folder_storage, store, tmp_path):
    source = write_classes(tmp_path / "images", cat=6, dog=6)
    config = config_of(source, folder_storage)
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr("transfer.dataset.ingest.write_index", lambda *_, **__: ())
        first = ingest(config, store)
    assert not first.index
    write_classes(source, first_seed=100, cat=2)
    second = ingest(config, store)
    assert sum(part.rows for part in second.index) == 14
    assert listed(store, second) == listed(store, as_of_an_earlier_release(second))


@pytest.mark.parametrize("fault", ["flipped", "missing"])
def test_the_shards_of_a_damaged_part_are_looked_into_with_a_warning(store, tmp_path, caplog, fault):
    dataset = dataset_of(store, ["cat", "dog"], [("train", images(0, 1, 2)), ("test", images(1, 3))])
    tables = read_images(store, dataset, COLUMNS)
    new = {shard.sha256: table for shard, table in zip(dataset.shards, tables, strict=True)}
    index = write_index(store, dataset.shards, new=new, parent=None)
    path = Path(tmp_path / "storage" / index[0].name)
    if fault == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    indexed = dataset.model_copy(update={"index": index})
    assert read_images(store, indexed, COLUMNS) == tables
    assert "are looked into instead" in caplog.text
    assert index[0].name in caplog.text


class Nights:
    """Versions whose shards exist in their index only."""

    def __init__(self, store):
        self.store = store
        self.rows = {}
        self.dataset = dataset_of(store, ["cat"], [])
        self.written = 0

    def night(self, new, *, gone=()):
        """Add a shard of `new` images, without the shards `gone`."""
        number = len(self.rows)
        shard = Shard(name=f"shards/{number}", sha256=f"{number:064x}", split="train", rows=new, size_bytes=1)
        columns = [
            binary_column(number.to_bytes(4, "big") * 8 * new, 32),
            np.arange(new, dtype=np.int32),
            pa.array([f"{number}-{row}" for row in range(new)]),
            pa.nulls(new, pa.string()),
        ]
        self.rows[shard.sha256] = pa.table(columns, schema=INDEX_SCHEMA)
        shards = [each for each in self.dataset.shards if each.sha256 not in gone] + [shard]
        new_rows = {shard.sha256: self.rows[shard.sha256]}
        index = write_index(self.store, shards, new=new_rows, parent=self.dataset)
        self.written += sum(part.rows for part in index if part not in self.dataset.index)
        self.dataset = self.dataset.model_copy(update={"shards": shards, "index": index})

    def check(self):
        """Whatever was absorbed, each shard has its own rows."""
        found = read_images(self.store, self.dataset, COLUMNS)
        assert found == [self.rows[shard.sha256] for shard in self.dataset.shards]


def test_many_nights_leave_few_parts_and_write_little_more_than_is_new(store):
    nights = Nights(store)
    nights.night(1000)
    for _ in range(50):
        nights.night(3)
    nights.check()
    assert len(nights.dataset.index) <= 7
    assert nights.dataset.index[0].rows == 1000, "the large part stayed as it was"
    assert nights.written <= 1000 + 50 * 3 * 6


def test_a_part_is_written_anew_when_most_of_it_has_left_the_dataset(store):
    nights = Nights(store)
    for rows in (100, 400, 500):
        nights.night(rows)
    (whole,) = nights.dataset.index
    first, second, third = nights.dataset.shards
    nights.night(10, gone=[second.sha256])
    assert nights.dataset.index[0].rows == whole.rows
    assert nights.dataset.index[0].shards == 2
    nights.check()
    nights.night(10, gone=[third.sha256])
    assert sum(part.rows for part in nights.dataset.index) == 120
    nights.check()
    assert first in nights.dataset.shards


def test_a_night_asks_for_the_index_once_and_for_nothing_of_an_old_shard(faulty_storage, fault_proxy, tmp_path):
    storage = faulty_storage.model_copy(update={"cache_size_bytes": 0})
    store = open_store(storage)
    source = write_classes(tmp_path / "images", cat=12, dog=12)
    config = config_of(source, storage, shard_size_bytes=SHARD_SIZE_BYTES)
    first = ingest(config, store)

    def asked(folder):
        return [(method, Path(path).stem) for method, path in fault_proxy.requests if f"/{folder}/" in path]

    fault_proxy.requests.clear()
    assert ingest(config, store) == first
    (part,) = first.index
    assert asked(layout.INDEX) == [("GET", part.sha256)]
    assert not asked(layout.SHARDS)

    write_classes(source, first_seed=100, cat=2)
    fault_proxy.requests.clear()
    second = ingest(config, store)
    assert {sha256 for _, sha256 in asked(layout.SHARDS)} == {
        shard.sha256 for shard in second.shards[len(first.shards) :]
    }
    # Whether the few parts are still there is looked up, too, before and after the version is added.
    read_or_written = [each for each in asked(layout.INDEX) if each[0] != "HEAD"]
    assert read_or_written == [("GET", part.sha256), ("PUT", second.index[-1].sha256)]


def test_who_asks_shard_by_shard_reads_a_part_once(store, tmp_path):
    dataset = dataset_of(store, ["cat", "dog"], [("train", images(0, 1, 2)), ("test", images(1, 3))])
    tables = read_images(store, dataset, COLUMNS)
    new = {shard.sha256: table for shard, table in zip(dataset.shards, tables, strict=True)}
    indexed = dataset.model_copy(update={"index": write_index(store, dataset.shards, new=new, parent=None)})
    index = ImageIndex(store, indexed, COLUMNS)
    assert index.tables(indexed.shards[:1]) == tables[:1]
    for name in (indexed.index[0].name, *(shard.name for shard in indexed.shards)):
        (tmp_path / "storage" / name).unlink()
    assert [index.tables([shard]) for shard in indexed.shards] == [[table] for table in tables]


def test_few_shards_of_a_large_part_are_looked_into(store, tmp_path, monkeypatch, caplog):
    dataset = dataset_of(store, ["cat", "dog"], [("train", images(0, 1, 2)), ("test", images(1, 3))])
    tables = read_images(store, dataset, COLUMNS)
    new = {shard.sha256: table for shard, table in zip(dataset.shards, tables, strict=True)}
    index = write_index(store, dataset.shards, new=new, parent=None)
    indexed = dataset.model_copy(update={"index": index})
    monkeypatch.setattr("transfer.dataset.index._BYTES_WORTH_A_SHARD", index[0].size_bytes - 1)
    (tmp_path / "storage" / index[0].name).unlink()
    assert read_images(store, indexed, COLUMNS, dataset.shards[:1]) == tables[:1]
    assert not caplog.records
