"""Clocks that are set while work goes on, and credentials that run out in the middle of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from tests.conftest import emulated
from tests.proof.amount import trials
from tests.proof.figures import note
from transfer.errors import NightBusyError, StorageError
from transfer.nights import claim as claim_module
from transfer.nights.claim import take_claim
from transfer.storage import open_store, sha256_hex
from transfer.storage.disk_cache import DiskCache

DAY_S = 86_400


@pytest.fixture(scope="module")
def s3_server():
    """A service that takes any key, which a real one does not."""
    with emulated() as url:
        yield url


@pytest.fixture
def set_clock(monkeypatch):
    """Sets the clock that claims look at, so many seconds off, or as many as a function says."""

    def set_to(offset_s):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(seconds=offset_s() if callable(offset_s) else offset_s)

        monkeypatch.setattr(claim_module, "datetime", Clock)

    return set_to


def test_however_clocks_jump_at_most_one_goes_on_with_a_night(folder_storage, set_clock):
    store, jumps, taken_over = open_store(folder_storage), random.Random(3), 0
    count = trials(50, 1_000)
    for night in range(count):
        offsets = [jumps.choice([0, 1, 60, DAY_S, 400 * DAY_S]) * jumps.choice([-1, 1]) for _ in range(4)]
        prefix, others = f"nights/{night}/claims", []
        set_clock(offsets[0])
        with take_claim(store, prefix, expires_s=900, what="night 1") as first:
            set_clock(offsets[1])
            with contextlib.suppress(NightBusyError):
                others.append(take_claim(store, prefix, expires_s=900, what="night 1"))
            set_clock(offsets[2])
            if others:
                with pytest.raises(NightBusyError, match="Another process took this night over"):
                    first.check()
                with others[0] as second:
                    set_clock(offsets[3])
                    second.check()
            else:
                first.check()
        taken_over += len(others)
    assert 0 < taken_over < count
    note("clocks of two that claim a night", trials=count, taken_over=taken_over, failures=0)


def test_a_holder_that_renews_twice_at_once_does_not_take_itself_for_another(store, set_clock):
    seconds = itertools.count()
    set_clock(lambda: next(seconds))  # No two renewals are the same document.
    for attempt in range(trials(5, 50)):
        claimed = take_claim(store, f"nights/{attempt}/claims", expires_s=0.02, what="night 1")
        with claimed as claim, ThreadPoolExecutor(4) as pool:
            for checked in [pool.submit(claim.check) for _ in range(8)]:
                checked.result()


def test_files_of_the_future_and_of_long_ago_in_the_local_tier_are_only_given_up_in_another_order(tmp_path):
    tier, moments = DiskCache(tmp_path, max_size_bytes=1_000), random.Random(0)
    contents = [bytes([number]) * 100 for number in range(30)]
    for content in contents * 3:
        sha256 = sha256_hex(content)
        assert tier.open(sha256, lambda path, content=content: path.write_bytes(content)).read() == content
        at_s = moments.choice([0, 2**31, 4 * 10**9])
        os.utime(tmp_path / sha256, (at_s, at_s))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000


def test_a_clock_that_the_service_does_not_accept_is_named_at_once(faulty_storage, fault_proxy, fast_retry):
    fault_proxy.fail("status", times=1000, status=403, code="RequestTimeTooSkewed")
    with pytest.raises(StorageError, match="RequestTimeTooSkewed") as caught:
        open_store(faulty_storage, retry=fast_retry).read("object")
    assert "clock" in caught.value.advice


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Sets the credentials of the only profile."""
    path = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def set_to(key):
        lines = [
            f"aws_access_key_id = {key}",
            f"aws_secret_access_key = of {key}",
            f"aws_session_token = token of {key}",
        ]
        path.write_text("\n".join(["[default]", *lines, ""]))

    return set_to


def expire(proxy, key, *, status, code):
    """From now on the service refuses who signs with that key."""
    signed = f"Credential={key}/"
    proxy.fail(
        "status",
        times=10_000,
        status=status,
        code=code,
        matches=lambda *_: signed in proxy.headers[-1]["Authorization"],
    )


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "ExpiredToken"), (403, "RequestExpired")])
def test_credentials_that_were_replaced_when_they_ran_out_are_found(
    s3_server, faulty_storage, fault_proxy, fast_retry, profile, status, code
):
    profile("OLDKEY")
    store = open_store(faulty_storage, retry=fast_retry)
    store.put("object", b"1" * 1000)
    expire(fault_proxy, "OLDKEY", status=status, code=code)
    profile("NEWKEY")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: store.read("object"), range(40))) == {b"1" * 1000}
    assert store.put("another", b"2") is True
    assert "Credential=NEWKEY/" in fault_proxy.headers[-1]["Authorization"]


def test_credentials_that_ran_out_and_were_not_replaced_are_named_at_once(
    s3_server, faulty_storage, fault_proxy, fast_retry, profile
):
    profile("OLDKEY")
    store = open_store(faulty_storage, retry=fast_retry)
    store.put("object", b"1")
    expire(fault_proxy, "OLDKEY", status=400, code="ExpiredToken")
    before = len(fault_proxy.requests)
    with pytest.raises(StorageError, match="ExpiredToken") as caught:
        store.read("object")
    assert "ran out" in caught.value.advice
    assert "OLDKEY" not in str(caught.value)
    assert len(fault_proxy.requests) == before + 1
