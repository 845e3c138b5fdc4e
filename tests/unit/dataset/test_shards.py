"""Shards in storage."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from transfer.dataset.manifest import Shard
from transfer.dataset.row_groups import Footers
from transfer.dataset.shards import SHARD_SCHEMA, read_columns, read_row_group, read_rows, read_shard, write_shard
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.storage import open_store


def rows(count, size_bytes=10):
    return [
        {
            "key": f"cat/{number}",
            "image": bytes([number % 256]) * size_bytes,
            "label": number % 3,
            "sha256": f"{number:064x}",
            "width": 5,
            "height": 4,
        }
        for number in range(count)
    ]


def test_a_shard_gives_back_its_rows(store):
    shard = write_shard(store, rows(20), split="train")
    table = read_shard(store, shard)
    assert table.schema == SHARD_SCHEMA
    assert table.to_pylist() == rows(20)
    assert (shard.rows, shard.split, shard.name) == (20, "train", f"shards/{shard.sha256}.parquet")
    assert shard.size_bytes == store.size(shard.name)


def test_the_same_rows_are_the_same_object(store):
    assert write_shard(store, rows(20), split="train") == write_shard(store, iter(rows(20)), split="train")
    assert len(list(store.list("shards/"))) == 1


def test_columns_are_read_without_the_images(store):
    shard = write_shard(store, rows(20), split="train")
    assert read_columns(store, shard, ["sha256", "label"])["label"].to_pylist() == [row["label"] for row in rows(20)]


def test_images_are_stored_uncompressed_in_row_groups_of_moderate_size(store):
    shard = write_shard(store, rows(20, size_bytes=128 * 1024), split="train")
    metadata = pq.ParquetFile(pa.BufferReader(store.read(shard.name))).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [8, 8, 4]
    assert shard.row_groups.rows == (8, 8, 4)
    image = metadata.row_group(0).column(1)
    assert image.compression == "UNCOMPRESSED"
    assert shard.size_bytes < 20.1 * 128 * 1024


def test_a_row_group_is_read_by_one_request(faulty_storage, fault_proxy):
    storage = faulty_storage.model_copy(update={"cache_size_bytes": 0})
    shard = write_shard(open_store(storage), rows(20, size_bytes=128 * 1024), split="train")
    store, footers = open_store(storage), Footers()

    def requests_of(group):
        before = len(fault_proxy.requests)
        table = read_row_group(store, shard, group, columns=["image", "label"], footers=footers)
        assert table.to_pylist() == read_shard(store, shard, columns=["image", "label"])[8 * group :][:8].to_pylist()
        return len(fault_proxy.requests) - before - 1  # One for the whole shard.

    # The first one also asks for the footer.
    assert [requests_of(group) for group in (2, 0, 1)] == [2, 1, 1]


def test_row_groups_of_a_bucket_are_fetched_once_a_machine(faulty_storage, fault_proxy):
    shard = write_shard(open_store(faulty_storage), rows(20, size_bytes=128 * 1024), split="train")
    for _ in range(2):
        store, footers = open_store(faulty_storage), Footers()
        for group in (0, 2):
            table = read_row_group(store, shard, group, columns=["key"], footers=footers)
            assert table["key"].to_pylist() == [row["key"] for row in rows(20)][8 * group :][:8]
    assert [method for method, _ in fault_proxy.requests].count("GET") == 3  # With the footer; never the whole shard.


def test_footers_stay_in_memory_up_to_their_limit(store, monkeypatch):
    shards = [write_shard(store, rows(20)[: 5 + number], split="train") for number in range(3)]
    footers = Footers(shards[1].row_groups.footer_size_bytes + shards[2].row_groups.footer_size_bytes)
    read = []
    opened = store.open_verified
    monkeypatch.setattr(store, "open_verified", lambda name, *a, **b: read.append(name) or opened(name, *a, **b))
    for number in (0, 1, 2, 2, 1, 0):
        footers.of(store, shards[number])
    assert read == [shards[number].name for number in (0, 1, 2, 0)]


def test_a_shard_of_an_earlier_release_is_one_row_group(store):
    shard = write_shard(store, rows(20), split="train")
    document = shard.model_dump()
    del document["row_groups"]
    earlier = Shard.model_validate(document)
    assert earlier.model_dump() == document
    assert earlier.rows_of_groups == (20,)
    assert read_row_group(store, earlier, 0, columns=["key"], footers=Footers()).num_rows == 20


def test_removed_rows_are_not_read(store):
    whole = write_shard(store, rows(20, size_bytes=128 * 1024), split="train")
    shard = whole.without(np.array([3, 17])).without(np.arange(8, 16))
    live = [number for number in range(20) if number not in (3, 17) and not 8 <= number < 16]
    expected = [rows(20, size_bytes=128 * 1024)[number] for number in live]
    assert (shard.rows, shard.stored_rows, shard.live_rows().tolist()) == (10, 20, live)
    assert (shard.whole, shard.rows_of_groups) == (whole, (7, 0, 3))
    assert Shard.model_validate(shard.model_dump()) == shard
    assert read_shard(store, shard).to_pylist() == expected
    assert read_columns(store, shard, ["label"])["label"].to_pylist() == [row["label"] for row in expected]
    groups = [read_row_group(store, shard, group, columns=["key"], footers=Footers()) for group in range(3)]
    assert [key for group in groups for key in group["key"].to_pylist()] == [row["key"] for row in expected]
    earlier = shard.model_copy(update={"row_groups": None})
    assert read_row_group(store, earlier, 0, columns=["key"], footers=Footers()).num_rows == earlier.rows_of_groups[0]
    for start, stop in ((0, 10), (0, 7), (6, 8), (7, 9), (9, 10)):
        for each in (shard, earlier):
            found = read_rows(store, each, range(start, stop), columns=["key"])["key"].to_pylist()
            assert found == [row["key"] for row in expected[start:stop]]


@pytest.mark.parametrize("removed", [(20,), (5, 4), (4, 4), (-1,)])
def test_removed_rows_that_no_shard_has_are_refused(store, removed):
    document = write_shard(store, rows(21), split="train").model_dump()
    with pytest.raises(ValidationError, match="removed"):
        Shard.model_validate(document | {"removed": removed, "rows": 20 - len(removed), "row_groups": None})


def test_a_damaged_shard_is_not_read(store):
    good = write_shard(store, rows(20), split="train")
    name = "shards/damaged"
    data = bytearray(store.read(good.name))
    data[len(data) // 2] ^= 1
    store.put(name, bytes(data))
    with pytest.raises(CorruptObjectError, match=name):
        read_shard(store, good.model_copy(update={"name": name}))


def test_a_shard_of_a_bucket_is_fetched_once_a_machine(faulty_storage, fault_proxy):
    shard = write_shard(open_store(faulty_storage), rows(20), split="train")
    for _ in range(3):
        assert read_shard(open_store(faulty_storage), shard).to_pylist() == rows(20)
    assert [method for method, _ in fault_proxy.requests].count("GET") == 1


def test_a_shard_that_is_gone_says_so(store):
    shard = write_shard(store, rows(2), split="train").model_copy(update={"name": "shards/gone"})
    with pytest.raises(ObjectNotFoundError, match="shards/gone"):
        read_shard(store, shard)
    with pytest.raises(ObjectNotFoundError, match="shards/gone"):
        read_columns(store, shard, ["label"])


def test_an_object_that_is_no_shard_is_refused(store):
    shard = write_shard(store, rows(2), split="train")
    with pytest.raises(CorruptObjectError, match="3 rows"):
        read_shard(store, shard.model_copy(update={"rows": 3}))
    with pytest.raises(ValidationError, match="row groups have 2 rows"):
        Shard.model_validate({**shard.model_dump(), "rows": 3})
    store.put("shards/text", b"no Parquet at all")
    with pytest.raises(CorruptObjectError, match="shards/text"):
        read_columns(store, shard.model_copy(update={"name": "shards/text"}), ["label"])
