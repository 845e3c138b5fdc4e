from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from transfer.errors import AlreadyExistsError, ObjectNotFoundError
from transfer.storage import Log


def test_an_empty_log_has_no_latest_entry(store):
    log = Log(store, "datasets/flowers")
    assert log.latest() is None
    assert log.numbers() == []
    with pytest.raises(ObjectNotFoundError):
        log.read(1)


def test_entries_are_numbered_from_one_and_stay(store):
    log = Log(store, "datasets/flowers")
    assert [log.append({"rows": rows}) for rows in (10, 20, 20)] == [1, 2, 3]
    assert log.numbers() == [1, 2, 3]
    assert log.latest() == (3, {"rows": 20})
    assert log.read(1) == {"rows": 10}
    assert store.exists("datasets/flowers/00000002.json")


def test_an_entry_under_a_given_number_is_refused_when_another_has_it(store):
    log = Log(store, "versions")
    assert log.append({"writer": "a"}, number=1) == 1
    assert log.append({"writer": "a"}, number=1) == 1
    with pytest.raises(AlreadyExistsError, match="00000001"):
        log.append({"writer": "b"}, number=1)
    assert log.read(1) == {"writer": "a"}
    assert log.append({"writer": "b"}) == 2


def test_other_objects_beside_the_entries_are_not_entries(store):
    log = Log(store, "versions")
    log.append({"version": 1})
    for name in (
        "versions/00000002/model.json",
        "versions/7.json",
        "versions/00000009.txt",
        "versions-old/00000005.json",
    ):
        store.put(name, b"{}")
    assert log.numbers() == [1]
    assert log.append({"version": 2}) == 2


def test_numbers_beyond_eight_digits_are_still_in_order(store):
    log = Log(store, "versions")
    log.append({"version": "last of eight digits"}, number=99_999_999)
    assert log.append({"version": "first of nine"}) == 100_000_000
    assert log.numbers() == [99_999_999, 100_000_000]


def test_numbers_below_one_are_a_bug(store):
    with pytest.raises(ValueError, match="number"):
        Log(store, "versions").append({}, number=0)


@pytest.mark.parametrize("same", [False, True])
def test_of_many_appends_at_once_each_becomes_an_entry_of_its_own(store, same):
    log = Log(store, "versions")
    start = threading.Barrier(8)

    def append(writer):
        start.wait()
        return [log.append({} if same else {"writer": writer, "turn": turn}) for turn in range(3)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for written in pool.map(append, range(8)) for number in written]
    assert sorted(numbers) == list(range(1, 25))
    assert log.numbers() == list(range(1, 25))
    if not same:
        entries = {(entry["writer"], entry["turn"]) for entry in map(log.read, log.numbers())}
        assert entries == {(writer, turn) for writer in range(8) for turn in range(3)}


def test_of_many_writers_of_one_number_exactly_one_wins(store):
    log = Log(store, "versions")
    start = threading.Barrier(8)

    def append(writer):
        start.wait()
        try:
            log.append({"writer": writer}, number=1)
        except AlreadyExistsError:
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [writer for writer in pool.map(append, range(8)) if writer is not None]
    assert [log.read(1)] == [{"writer": writer} for writer in winners]
