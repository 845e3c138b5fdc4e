"""A network that fails in every manner: retries are bounded, nothing wrong is used or kept, repeating finishes."""

from __future__ import annotations

import functools
import random
import threading
from pathlib import Path

import pytest

from tests.proof.amount import trials
from tests.proof.driver import copied, job_with_a_past
from tests.proof.figures import note
from tests.proof.readers import assert_finished
from transfer.errors import StorageError, TransferError
from transfer.storage import RetryPolicy, open_store, sha256_hex
from transfer.storage import address as address_module

CONTENT = b"bytes of an object, " * 5000
SHA256 = sha256_hex(CONTENT)
# In which a request fails; what a client can still make of it is the proxy's affair.
MANNERS = {
    "503": {"manner": "status", "status": 503, "code": "SlowDown"},
    "429": {"manner": "status", "status": 429, "code": "TooManyRequests"},
    "500": {"manner": "status", "status": 500, "code": "InternalError"},
    "reset": {"manner": "reset"},
    "lost response": {"manner": "lost response"},
    "short body": {"manner": "short body"},
    "cut body": {"manner": "cut body"},
    "flipped byte": {"manner": "flipped byte"},
    "no answer": {"manner": "held"},
    "stalled body": {"manner": "stalled body"},
}
# What the error says of the cause. A body that is cut so that its header agrees is noticed by its digest.
CAUSES = {
    "503": "SlowDown (HTTP 503)",
    "429": "TooManyRequests (HTTP 429)",
    "500": "InternalError (HTTP 500)",
    "reset": "ConnectionClosedError",
    "lost response": "ConnectionClosedError",
    "short body": "ResponseStreamingError",
    "cut body": "bytes arrived as bytes 0-",
    "flipped byte": "is damaged",
    "no answer": "ReadTimeoutError",
    "stalled body": "ReadTimeoutError",
}
IMPATIENT = RetryPolicy(attempts=4, first_wait_s=0.001, longest_wait_s=0.01, silence_s=0.3)


@pytest.fixture
def store(faulty_storage):
    return open_store(faulty_storage, retry=IMPATIENT)


@pytest.fixture
def spoil(fault_proxy):
    """Makes requests fail in a manner; who was held is let go in the end."""
    let_go = threading.Event()

    def fail(name, *, times, **options):
        fault_proxy.fail(times=times, held_until=let_go, **MANNERS[name], **options)

    yield fail
    let_go.set()


def kept_in(storage):
    """What the local tier keeps; each file is what its name says."""
    folder = Path(storage.cache_folder) / "objects"
    kept = sorted(folder.iterdir()) if folder.exists() else []
    for path in kept:
        assert path.suffix == ".part" or sha256_hex(path.read_bytes()) == path.name
    return [path.name for path in kept]


def has_body(method, _path):
    return method == "GET"


def any_request(_method, _path):
    return True


@pytest.mark.parametrize("manner", MANNERS)
def test_a_fault_that_passes_costs_nothing_but_time(store, faulty_storage, fault_proxy, spoil, manner):
    # What only its digest tells from the object is read anew once, anything else as often as any request.
    times = 1 if manner in {"flipped byte", "cut body"} else 2
    for ask, expected in [
        (lambda: store.put("object", CONTENT), True),
        (lambda: store.read("object"), CONTENT),
        (lambda: store.open_verified("object", SHA256).read(), CONTENT),
        (lambda: store.read_verified("object", SHA256), CONTENT),
        (lambda: [item.name for item in store.list()], ["object"]),
    ]:
        spoil(manner, times=times, matches=has_body if "body" in manner else any_request)
        assert ask() == expected
        fault_proxy.heal()
    assert kept_in(faulty_storage) == [SHA256]


@pytest.mark.parametrize("manner", MANNERS)
def test_a_fault_that_stays_is_an_error_that_names_object_and_cause_and_keeps_nothing(
    store, s3_storage, faulty_storage, fault_proxy, spoil, manner
):
    open_store(s3_storage).put("some/object", CONTENT)
    spoil(manner, times=10_000, matches=has_body)
    asked = len(fault_proxy.requests)
    with pytest.raises(StorageError) as caught:
        store.open_verified("some/object", SHA256)
    for part in ("some/object", store.uri, CAUSES[manner]):
        assert part in str(caught.value)
    # One for the size, then the object; twice, where the bytes are wrong.
    assert len(fault_proxy.requests) - asked <= 1 + 2 * IMPATIENT.attempts
    assert kept_in(faulty_storage) == []
    fault_proxy.heal()
    assert store.open_verified("some/object", SHA256).read() == CONTENT
    assert kept_in(faulty_storage) == [SHA256]


@pytest.mark.parametrize("manner", [manner for manner in MANNERS if "body" not in manner and "byte" not in manner])
def test_a_commit_of_which_nothing_is_heard_is_an_error_and_its_repetition_settles_it(
    store, s3_storage, fault_proxy, spoil, manner
):
    spoil(manner, times=10_000, matches=lambda method, _: method == "PUT")
    with pytest.raises(StorageError) as caught:
        store.put("some/object", CONTENT)
    assert CAUSES[manner] in str(caught.value)
    assert sum(method == "PUT" for method, _ in fault_proxy.requests) == IMPATIENT.attempts
    fault_proxy.heal()
    # It may have been stored: then it is the same, and that is no error.
    stored = manner == "lost response"
    assert store.exists("some/object") == stored
    assert store.put("some/object", CONTENT) == (not stored)
    assert open_store(s3_storage).read("some/object") == CONTENT


def test_a_slow_store_is_waited_for(store, fault_proxy):
    fault_proxy.fail("slow body", times=100)
    store.put("object", CONTENT)
    assert store.read("object") == CONTENT
    assert store.open_verified("object", SHA256).read() == CONTENT
    assert len(fault_proxy.requests) == 4


def test_a_listing_that_does_not_read_as_one_is_asked_for_again_and_then_an_error(store, fault_proxy):
    store.put("object", CONTENT)
    for garble, cause in [
        (lambda _: b"<html>", "500"),
        (lambda xml: xml[: len(xml) // 2], "500"),
        (lambda xml: xml.replace(b"<Size>", b"<Size>x"), "none of S3"),
    ]:
        fault_proxy.fail("changed body", times=1, change=garble)
        assert [item.name for item in store.list()] == ["object"]
        fault_proxy.fail("changed body", times=1000, change=garble)
        with pytest.raises(StorageError, match=cause):
            list(store.list())
        fault_proxy.heal()


def test_a_wrong_answer_about_the_size_is_asked_for_again(store, faulty_storage, fault_proxy):
    store.put("object", CONTENT)
    fault_proxy.fail("changed body", change=lambda _: CONTENT[:100], matches=lambda method, _: method == "HEAD")
    assert store.open_verified("object", SHA256).read() == CONTENT
    assert kept_in(faulty_storage) == [SHA256]


def test_an_object_of_another_size_than_promised_is_no_object(store, s3_storage, faulty_storage, fault_proxy):
    """The whole body is there, and it is another one: as of a service that mixes up names."""
    open_store(s3_storage).put("object", CONTENT)
    fault_proxy.fail("changed body", times=1000, change=lambda body: body + b"x", matches=has_body)
    for ask in (
        store.read,
        lambda name: store.read_verified(name, SHA256),
        lambda name: store.open_verified(name, SHA256),
    ):
        with pytest.raises(StorageError, match="object"):
            ask("object")
    assert kept_in(faulty_storage) == []


def some_of(draw, share):
    return lambda _method, _path: draw.random() < share


def test_through_faults_of_all_manners_a_job_ends_right_or_with_an_error_and_a_repetition_finishes(
    s3_storage, faulty_storage, fault_proxy, spoil, tmp_path, monkeypatch
):
    monkeypatch.setattr(address_module, "RetryPolicy", functools.partial(RetryPolicy, **vars(IMPATIENT)))
    past = job_with_a_past(tmp_path / "past")
    rounds, errors = trials(1, 30), []
    for number in range(rounds):
        draw = random.Random(number)
        storage = s3_storage.model_copy(update={"uri": f"{s3_storage.uri}/{number}"})
        job = copied(past, storage).on(storage.model_copy(update={"endpoint_url": fault_proxy.url}))
        for manner in draw.choices(list(MANNERS), k=12):
            # Some requests in a row, or a few here and there.
            share = draw.choice([1.0, 0.2, 0.05])
            spoil(manner, times=draw.randint(1, 6), matches=some_of(draw, share))
        attempts = 0
        while True:
            attempts += 1
            assert attempts <= 100, "faults are bounded, and so are the attempts that they cost"
            try:
                job.do()
            except TransferError as error:
                errors.append(type(error).__name__)
            else:
                break
        fault_proxy.heal()
        assert_finished(storage)
        kept_in(faulty_storage)
    # What is there is never taken for missing. A publication whose request was given up may yet come about, and is then
    # found to be another process's.
    assert set(errors) <= {"StorageError", "CorruptObjectError", "PublishConflictError"}
    note("a job through a network that fails", trials=rounds, faults=fault_proxy.faults, errors=len(errors), failures=0)
