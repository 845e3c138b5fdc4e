from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from transfer.errors import AlreadyExistsError, StorageError, UnsafeStorageError
from transfer.storage import open_store, probe


def ignore_conditions(proxy):
    proxy.fail("no conditions", times=1_000_000)


def conditional(proxy):
    def matches(method, path):
        return method == "PUT" and any(name.lower() == "if-none-match" for name in proxy.headers[-1])

    return matches


@pytest.fixture
def faulty(faulty_storage, fast_retry):
    return open_store(faulty_storage, retry=fast_retry)


@pytest.fixture
def single_writer(faulty_storage, fast_retry):
    return open_store(faulty_storage.model_copy(update={"single_writer": True}), retry=fast_retry)


def test_a_store_that_honors_conditions_passes_and_nothing_is_left(store):
    probe(store, single_writer=False)
    probe(store, single_writer=True)
    assert list(store.list()) == []


def test_a_probe_that_is_interrupted_between_its_racers_ends(store, monkeypatch):
    """The first one would wait for the others, and Python for the first one."""
    started = []

    def submit(pool, *arguments, real=ThreadPoolExecutor.submit):
        if started:
            raise KeyboardInterrupt
        started.append(pool)
        return real(pool, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        probe(store, single_writer=False)


def test_a_store_that_ignores_conditions_is_refused(faulty, fault_proxy):
    ignore_conditions(fault_proxy)
    with pytest.raises(UnsafeStorageError, match="single_writer"):
        probe(faulty, single_writer=False)
    assert list(faulty.list()) == []


def test_a_store_that_says_taken_and_overwrites_all_the_same_is_refused(faulty, fault_proxy):
    fault_proxy.fail("refused in vain", times=2, matches=lambda method, _: method == "PUT")
    with pytest.raises(UnsafeStorageError):
        probe(faulty, single_writer=False)


def test_a_store_that_looks_first_and_writes_then_is_refused_unless_there_is_a_single_writer(
    faulty, single_writer, fault_proxy
):
    """As moto and OpenStack Swift do: who comes in between is not seen."""
    fault_proxy.fail("early conditions", times=1_000_000, matches=lambda method, _: method == "PUT")
    assert faulty.create("object", b"first") is True
    assert faulty.create("object", b"second") is False
    with pytest.raises(UnsafeStorageError, match=r"at the same moment.*single_writer"):
        probe(faulty, single_writer=False)
    probe(single_writer, single_writer=True)
    assert [item.name for item in faulty.list()] == ["object"]


def test_a_single_writer_can_use_a_store_that_ignores_conditions(single_writer, fault_proxy):
    ignore_conditions(fault_proxy)
    probe(single_writer, single_writer=True)
    assert single_writer.put("object", b"content") is True
    assert single_writer.put("object", b"content") is False
    with pytest.raises(AlreadyExistsError, match="object"):
        single_writer.put("object", b"other")
    assert single_writer.read("object") == b"content"


def test_a_store_that_does_not_implement_conditions_is_refused_unless_there_is_a_single_writer(
    faulty, single_writer, fault_proxy
):
    fault_proxy.fail("status", times=1_000_000, status=501, code="NotImplemented", matches=conditional(fault_proxy))
    with pytest.raises(UnsafeStorageError, match="single_writer"):
        probe(faulty, single_writer=False)
    with pytest.raises(UnsafeStorageError):
        faulty.put("object", b"content")
    probe(single_writer, single_writer=True)
    assert single_writer.put("object", b"content") is True
    assert [item.name for item in single_writer.list()] == ["object"]


def test_a_store_that_cannot_be_written_is_refused_for_a_single_writer_too(single_writer, fault_proxy):
    fault_proxy.fail("status", times=1000, status=403, code="AccessDenied", matches=lambda method, _: method == "PUT")
    with pytest.raises(StorageError, match="AccessDenied"):
        probe(single_writer, single_writer=True)


def test_a_store_that_neither_implements_conditions_nor_can_be_written_is_refused(single_writer, fault_proxy):
    fault_proxy.fail("status", times=1000, status=501, code="NotImplemented", matches=conditional(fault_proxy))
    fault_proxy.fail("status", times=1000, status=403, code="AccessDenied", matches=lambda method, _: method == "PUT")
    with pytest.raises(StorageError, match="AccessDenied"):
        probe(single_writer, single_writer=True)


def test_a_store_whose_bytes_change_is_refused(faulty, fault_proxy):
    fault_proxy.fail("flipped byte", times=1000, matches=lambda method, _: method == "GET")
    with pytest.raises(StorageError):
        probe(faulty, single_writer=False)


def without_objects(listing):
    return re.sub(rb"<Contents>.*</Contents>", b"", listing, flags=re.DOTALL)


def test_a_store_whose_listing_does_not_show_what_was_written_is_refused(faulty, single_writer, fault_proxy):
    fault_proxy.fail("changed body", times=1000, change=without_objects, matches=lambda _, path: "list-type" in path)
    with pytest.raises(StorageError, match="lists nothing where"):
        probe(faulty, single_writer=False)
    fault_proxy.fail("status", times=1000, status=501, code="NotImplemented", matches=conditional(fault_proxy))
    with pytest.raises(StorageError, match="lists nothing where"):
        probe(single_writer, single_writer=True)


def test_a_probe_passes_where_removing_is_forbidden_and_through_faults(faulty, fault_proxy):
    fault_proxy.fail(
        "status", times=1000, status=403, code="AccessDenied", matches=lambda method, _: method == "DELETE"
    )
    fault_proxy.fail("lost response", times=2, matches=lambda method, _: method == "PUT")
    probe(faulty, single_writer=False)
    assert all(item.name.startswith(".probe/") for item in faulty.list())
