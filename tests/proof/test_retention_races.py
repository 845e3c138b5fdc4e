"""Removals against promotions, pins, other removals and SIGKILL."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from tests.published import MODEL, assert_all_intact, left_of, numbers, publish_some
from transfer.catalog import layout
from transfer.errors import RegistryError
from transfer.registry import retention as module
from transfer.registry.promote import promote
from transfer.registry.retention import pin_version, remove_old_versions
from transfer.registry.retention_log import read_retention, retention_log
from transfer.registry.versions import current_promotion
from transfer.storage import open_store
from transfer.storage import store as store_module


def at_once(*tasks):
    """Run the tasks in threads; what each gave, or the error of the registry that it ended with."""
    barrier, outcomes = threading.Barrier(len(tasks)), [None] * len(tasks)

    def run(index, task):
        barrier.wait()
        try:
            outcomes[index] = task()
        except RegistryError as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def rounds(storage):
    return 5 if storage.uri.startswith("s3:") else 50


def test_a_version_that_is_promoted_while_it_is_removed_serves_whole_or_is_refused(storage):
    store = open_store(storage)
    for attempt in range(rounds(storage)):
        model = f"flowers-{attempt}"
        first, *_ = publish_some(store, 3, promoted=[2, 3], model=model)
        promoted, _ = at_once(
            lambda version=first: promote(store, version, reason="back"),
            lambda model=model: remove_old_versions(store, model, keep=1, remove=True),
        )
        if isinstance(promoted, RegistryError):
            assert "was removed" in promoted.message
            assert current_promotion(store, model).version == 3
            assert left_of(store, 1, model) == []
        else:
            assert current_promotion(store, model).version == 1
            assert 1 in numbers(store, model)
        assert_all_intact(store, model)


def test_a_version_that_is_pinned_while_it_is_removed_stays_whole_or_is_refused(storage):
    store = open_store(storage)
    for attempt in range(rounds(storage)):
        model = f"flowers-{attempt}"
        publish_some(store, 2, model=model)
        pinned, _ = at_once(
            lambda model=model: pin_version(store, model, 1, reason="mine"),
            lambda model=model: remove_old_versions(store, model, keep=1, remove=True),
        )
        assert numbers(store, model) == ([2] if isinstance(pinned, RegistryError) else [1, 2])
        assert left_of(store, 1, model) == [] or 1 in numbers(store, model)
        assert_all_intact(store, model)


def test_removals_at_once_remove_each_version_once(storage):
    store = open_store(storage)
    for attempt in range(rounds(storage) // 5):
        model = f"flowers-{attempt}"
        publish_some(store, 5, promoted=[2, 4], model=model)
        at_once(*(lambda k=k, m=model: remove_old_versions(store, m, keep=k, remove=True) for k in (1, 2, 3)))
        assert numbers(store, model) == [2, 4, 5]
        assert [left_of(store, number, model) for number in (1, 3)] == [[], []]
        log = retention_log(store, model)
        entries = [log.read(number) for number in log.numbers()]
        assert sorted(n for entry in entries if entry["action"] == "remove" for n in entry["versions"]) == [1, 3]
        assert_all_intact(store, model)


@pytest.mark.parametrize("meanwhile", ["promote", "pin"])
def test_who_comes_between_the_plan_and_the_decision_is_seen(store, monkeypatch, meanwhile):
    first, *_ = publish_some(store, 3, promoted=[3, 2])
    plan, plans = module._plan, []

    def then_another_acts(*arguments):
        plans.append(plan(*arguments))
        if len(plans) == 1:
            if meanwhile == "promote":
                promote(store, first, reason="back")
            else:
                pin_version(store, MODEL, 1, reason="mine")
        return plans[-1]

    monkeypatch.setattr(module, "_plan", then_another_acts)
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert [[version.number for version in plan.going] for plan in plans] == [[1], []]
    assert 1 in numbers(store)
    assert_all_intact(store)


def test_at_each_moment_of_a_removal_whoever_reads_storage_directly_sees_whole_versions_only(store, monkeypatch):
    versions = {version.number: version for version in publish_some(store, 5, promoted=[4, 5])}
    monkeypatch.setattr(store_module, "PARALLEL", 1)
    remove, moments = store.remove, []

    def look():
        there = {item.name for item in store.list(f"{layout.versions_log(MODEL)}/")}
        for number, version in versions.items():
            files = {f"{version.folder}/{file.name}" for file in version.files}
            if f"{version.folder}.json" in there or f"{version.folder}/saved_model.pb" in there:
                assert files <= there
                assert number not in numbers(store) or f"{version.folder}.json" in there
        moments.append(len(there))

    def remove_and_look(name):
        look()
        remove(name)
        look()

    monkeypatch.setattr(store, "remove", remove_and_look)
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert len(moments) == 2 * 3 * 4  # The JSON, two files and the claim of three versions, before and after each.


def _remove_and_hang(storage, after, reached):
    """Remove old versions, and stand still before the object number `after` goes."""
    store_module.PARALLEL = 1
    store, removed = open_store(storage), []
    remove = store.remove

    def count(name):
        if len(removed) == after:
            reached.set()
            time.sleep(600)
        removed.append(name)
        remove(name)

    store.remove = count
    remove_old_versions(store, MODEL, keep=1, remove=True)


@pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
def test_a_removal_killed_halfway_leaves_every_version_whole_and_the_next_one_ends_it(folder_storage, after):
    store = open_store(folder_storage)
    publish_some(store, 4, promoted=[3, 4])
    context = multiprocessing.get_context("spawn")
    reached = context.Event()
    process = context.Process(target=_remove_and_hang, args=(folder_storage, after, reached))
    process.start()
    assert reached.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert sum(len(left_of(store, number)) for number in (1, 2)) == 8 - after
    assert numbers(store) == [3, 4]
    assert_all_intact(store)
    publish_some(store, 1)
    unfinished = tuple(number for number in (1, 2) if left_of(store, number))
    assert remove_old_versions(store, MODEL, keep=2, remove=True).unfinished == unfinished
    assert [left_of(store, number) for number in (1, 2)] == [[], []]
    assert numbers(store) == [3, 4, 5]
    assert read_retention(store, MODEL).removed == (1, 2)
