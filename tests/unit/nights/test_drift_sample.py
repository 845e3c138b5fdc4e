"""Some of many rows, always the same ones."""

import numpy as np

from transfer.dataset.manifest import Shard
from transfer.nights.drift import MAX_SHARDS, ShardRows, sample
from transfer.storage import sha256_hex


def rows_of(number, *rows):
    sha256 = sha256_hex(b"%d" % number)
    return ShardRows(Shard(name=sha256, sha256=sha256, split="train", rows=1000, size_bytes=1), np.array(rows, int))


def taken(chosen):
    return {(rows.shard.sha256, row) for rows in chosen for row in rows.rows.tolist()}


def test_few_rows_are_all_taken():
    groups = [rows_of(1, 3, 5), rows_of(2), rows_of(3, 0)]
    chosen = sample(groups, 3)
    assert taken(chosen) == taken(groups)
    assert all(len(rows) for rows in chosen), "a shard without a row is not opened"


def test_of_many_rows_each_shard_gives_its_share_from_the_beginning():
    chosen = sample([rows_of(1, *range(0, 600, 2)), rows_of(2, *range(100))], 40)
    assert sorted(len(rows) for rows in chosen) == [10, 30]
    assert all(rows.rows.tolist() in (list(range(0, 60, 2)), list(range(10))) for rows in chosen)


def test_the_order_of_the_shards_does_not_matter():
    groups = [rows_of(number, *range(10)) for number in range(5)]
    assert taken(sample(groups, 12)) == taken(sample(groups[::-1], 12))


def test_no_more_shards_are_opened_than_is_worth_while():
    chosen = sample([rows_of(number, 1, 2) for number in range(2 * MAX_SHARDS)], 1000)
    assert len(chosen) == MAX_SHARDS


def test_of_no_rows_there_are_none():
    assert sample([rows_of(1)], 10) == []
