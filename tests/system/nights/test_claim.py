"""Who works on a night, with real processes where one dies."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from transfer.errors import NightBusyError
from transfer.nights.claim import Claim, held_claim, take_claim
from transfer.storage import Log, open_store

PREFIX = "nights/n/00000001/claims"
WHAT = "night 1 of n"


def taken(store, expires_s=900.0):
    return take_claim(store, PREFIX, expires_s=expires_s, what=WHAT)


def claim_of_elsewhere(**changes):
    """A claim of a process on another machine."""
    since = datetime.now(UTC)
    claim = Claim(
        holder="other",
        host="other-host",
        namespace="",
        pid=77,
        since=since.isoformat(timespec="seconds"),
        until=(since + timedelta(minutes=15)).isoformat(timespec="seconds"),
    )
    return claim.model_copy(update=changes)


def put_claim(store, claim):
    return Log(store, PREFIX).append(claim.model_dump())


def test_of_two_only_one_works_and_the_other_says_who_does_and_since_when(store):
    with taken(store):
        with pytest.raises(NightBusyError) as caught:
            taken(store)
        assert f"process {os.getpid()} on " in caught.value.message
        assert caught.value.message.startswith("Night 1 of n is being worked on by ")
        assert caught.value.exit_code == 10
        assert held_claim(store, PREFIX)
    assert not held_claim(store, PREFIX)
    with taken(store):
        pass


def test_a_claim_is_released_when_its_work_fails(store):
    with pytest.raises(ValueError, match="work"), taken(store):
        raise ValueError("work")
    assert not held_claim(store, PREFIX)


def test_a_process_of_another_machine_counts_as_alive_until_its_claim_expires(store):
    put_claim(store, claim_of_elsewhere())
    with pytest.raises(NightBusyError, match="process 77 on other-host"):
        taken(store)
    put_claim(store, claim_of_elsewhere(until=(datetime.now(UTC) - timedelta(seconds=1)).isoformat()))
    with taken(store):
        pass


def test_a_dead_process_of_this_machine_holds_nothing(folder_storage):
    program = (
        "import sys; from transfer.config import StorageConfig; from transfer.nights.claim import take_claim\n"
        "from transfer.storage import open_store\n"
        f"with take_claim(open_store(StorageConfig(uri=sys.argv[1])), {PREFIX!r}, expires_s=900, what={WHAT!r}):\n"
        "    print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, folder_storage.uri]
    store = open_store(folder_storage)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "taken\n"
        with pytest.raises(NightBusyError, match=f"process {holder.pid} on"):
            taken(store)
        holder.send_signal(signal.SIGKILL)
    with taken(store):
        assert held_claim(store, PREFIX)


def test_a_claim_is_renewed_while_its_holder_lives(folder_storage):
    store = open_store(folder_storage)
    with taken(store, expires_s=2.0) as claim:
        time.sleep(3.0)
        claim.check()
        with pytest.raises(NightBusyError):
            taken(store)
    assert len(Log(store, PREFIX).numbers()) > 3


def test_a_holder_that_was_taken_for_dead_notices_before_it_does_anything_that_lasts(folder_storage):
    store = open_store(folder_storage)
    with taken(store, expires_s=0.4) as claim:
        put_claim(store, claim_of_elsewhere())
        time.sleep(0.5)
        with pytest.raises(NightBusyError, match="took this night over while this one was not heard of: process 77"):
            claim.check()
    # Its end releases nothing: the claim is another's now.
    assert held_claim(store, PREFIX)


def test_of_many_at_the_same_moment_exactly_one_gets_the_claim(store):
    from concurrent.futures import ThreadPoolExecutor

    def attempt(_):
        try:
            return taken(store)
        except NightBusyError:
            return None

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(attempt, range(8)))
    assert sum(claim is not None for claim in claims) == 1
