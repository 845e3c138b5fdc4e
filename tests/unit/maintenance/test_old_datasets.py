"""What `transfer datasets gc` removes, and what never goes."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest

from tests.published import publish_some
from tests.runs import store_run
from tests.sourcing import config_of, image, write_classes, write_file
from transfer.dataset import ingest as ingest_module
from transfer.dataset import removals
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import load_dataset
from transfer.dataset.removals import await_removals, objects_of
from transfer.dataset.shards import read_shard
from transfer.maintenance import old_datasets
from transfer.maintenance.forget import forget
from transfer.maintenance.old_datasets import remove_old_versions
from transfer.maintenance.runs import versions_of_dataset
from transfer.storage import open_store, put_document, remove_in_steps

LONG_AGO = timedelta(0)


@pytest.fixture
def pets(tmp_path, folder_storage):
    """Four versions: an image is hidden from the second, another one from the third, and none from the fourth."""
    source = write_classes(tmp_path / "images", cat=12, dog=12)
    config = config_of(source, folder_storage, validation=0.0)
    store = open_store(config.storage)
    for hidden in (None, "cat/00001.png", "cat/00002.png", None):
        config = config_of(source, folder_storage, validation=0.0, exclude=[hidden] if hidden else [])
        ingest(config, store)
    return config, store


def numbers(store):
    return [version.number for version in versions_of_dataset(store, "pets")]


def clean(store, *, at_work=LONG_AGO, remove=True):
    return remove_old_versions(store, "pets", at_work=at_work, remove=remove)


def assert_readable(store):
    for version in versions_of_dataset(store, "pets"):
        for shard in version.shards:
            assert read_shard(store, shard).num_rows == shard.rows
        assert all(store.exists(name) for name in objects_of(version))


def test_old_versions_go_with_what_only_they_name(pets):
    _, store = pets
    newest = load_dataset(store, "pets")
    store.put("shards/" + "a" * 64 + ".parquet", b"of a failed ingest")
    before = {item.name for item in store.list()}
    assert [version.number for version in clean(store, remove=False).going] == [1, 2, 3]
    assert {item.name for item in store.list()} == before
    found = clean(store)
    assert numbers(store) == [4]
    named = {*(shard.name for shard in newest.shards), *(part.name for part in newest.index)}
    unneeded = {name for name in before if name.split("/")[0] in ("shards", "index", "rejects")} - named
    versions = {f"datasets/pets/0000000{number}.json" for number in (1, 2, 3)}
    assert {item.name for item in found.objects} == unneeded
    assert before - {item.name for item in store.list()} == unneeded | versions
    assert_readable(store)
    assert clean(store) == old_datasets.DatasetCleaning((), (), ())


def test_what_something_needs_stays_and_the_reason_is_said(pets):
    _, store = pets
    store_run(store, "mine", dataset={"name": "pets", "number": 2})
    publish_some(store, 1, model="pets")
    put_document(store, "nights/pets/00000001.json", {"started": "", "config": ""})
    put_document(store, "nights/pets/00000001/plan.json", {"dataset": 3})
    found = clean(store)
    assert numbers(store) == [1, 2, 3, 4]
    assert {each.dataset.number: each.why for each in found.kept} == {
        1: "model version pets/1",
        2: "run mine",
        3: "an unfinished night of pets",
    }
    assert_readable(store)


def test_what_is_young_stays_for_whoever_is_at_work(pets):
    _, store = pets
    name = "shards/" + "a" * 64 + ".parquet"
    store.put(name, b"of an ingest that is about to add its version")
    found = clean(store, at_work=timedelta(days=1))
    assert (found.going, found.objects) == ((), ())
    assert all(each.why.startswith("was the newest one until") for each in found.kept)
    os.utime(store.folder / name, (0, 0))
    assert [item.name for item in clean(store, at_work=timedelta(days=1)).objects] == [name]


def test_a_shard_that_is_removed_while_a_version_that_has_it_is_added_is_written_again(pets, monkeypatch):
    config, store = pets
    ingest(config_of(config.dataset.source, config.storage, validation=0.0, exclude=["cat/00002.png"]), store)
    append = ingest_module.dataset_log

    def after_removal(*args):
        clean(store)
        return append(*args)

    # The fourth version's last shard is found, and removed before the sixth version is there.
    lost = load_dataset(store, "pets", 4).shards[-1]
    monkeypatch.setattr(ingest_module, "dataset_log", after_removal)
    assert lost in ingest(config, store).shards
    assert_readable(store)


def test_a_shard_that_a_version_took_up_again_meanwhile_stays(pets, monkeypatch):
    _, store = pets
    first = load_dataset(store, "pets", 2)
    steps = old_datasets.remove_in_steps

    def removing(store, names):
        document = first.model_copy(update={"number": 5, "parent": 4}).model_dump()
        put_document(store, "datasets/pets/00000005.json", document)
        steps(store, names)

    monkeypatch.setattr(old_datasets, "remove_in_steps", removing)
    clean(store)
    assert numbers(store) == [4, 5]
    assert_readable(store)


@pytest.fixture
def waits(monkeypatch):
    """Set when something waits for a removal; it looks again soon."""
    event, pause = Event(), Event()

    def sleep(seconds):
        event.set()
        pause.wait(0.01)

    monkeypatch.setattr(removals, "sleep", sleep)
    return event


@pytest.mark.parametrize("adds", ["ingest", "forget"])
def test_a_version_that_is_added_while_its_objects_go_waits_and_writes_them_again(pets, monkeypatch, waits, adds):
    config, store = pets
    write_file(Path(config.dataset.source) / "cat" / "notes.txt", b"for the ledger")
    write_classes(Path(config.dataset.source), first_seed=100, cat=3)

    def add():
        if adds == "ingest":
            return ingest(config, store)
        return forget(store, "pets", ["cat/00005.png"], reason="asked to", remove=True)

    # As if it had been killed: its objects are there, and no version has them.
    add()
    left = load_dataset(store, "pets", 5)
    store.remove("datasets/pets/00000005.json")
    adding = []
    with ThreadPoolExecutor(1) as pool:

        def removing(store, steps):
            if not adding:
                adding.append(pool.submit(add))
                assert waits.wait(30)
            remove_in_steps(store, steps)

        monkeypatch.setattr(removals, "remove_in_steps", removing)
        clean(store)
        adding[0].result(30)
    assert numbers(store) == [4, 5]
    assert {*objects_of(load_dataset(store, "pets", 5))} == {*objects_of(left)}
    assert_readable(store)


def test_only_a_removal_of_own_objects_without_an_end_is_waited_for_and_not_for_ever(pets, waits):
    _, store = pets
    dataset = load_dataset(store, "pets")
    own, other = dataset.shards[0].name, "shards/" + "a" * 64 + ".parquet"
    later = datetime.now(UTC) + timedelta(minutes=15)
    put_document(store, "removals/00000001.json", {"names": [other], "until": later.isoformat()})
    put_document(store, "removals/00000002.json", {"names": [own], "until": "2020-01-01T00:00:00+00:00"})
    put_document(store, "removals/00000003.json", {"names": [own], "until": later.isoformat()})
    put_document(store, "removals/00000003/end.json", {"ended": later.isoformat()})
    await_removals(store, dataset)
    assert not waits.is_set()
    # One that was killed: until its time is over by any clock.
    nearly = datetime.now(UTC) - timedelta(minutes=4, seconds=59)
    put_document(store, "removals/00000004.json", {"names": [own], "until": nearly.isoformat()})
    await_removals(store, dataset)
    assert waits.is_set()


def test_a_removal_stops_when_its_time_is_up_and_says_what_is_left(pets, monkeypatch):
    _, store = pets
    with monkeypatch.context() as patch:
        patch.setattr(removals, "_BEGINNING", timedelta(0))
        found = clean(store)
    assert found.left == len(found.objects) > 0
    assert all(store.exists(item.name) for item in found.objects)
    again = clean(store)
    assert (len(again.objects), again.left) == (found.left, 0)
    assert not any(store.exists(item.name) for item in found.objects)


def test_no_version_lacks_a_shard_because_an_image_changed_before_it_was_to_be_written_again(pets, monkeypatch):
    config, store = pets
    source = Path(config.dataset.source)
    write_classes(source, first_seed=100, cat=3)
    write = ingest_module.write_index

    def while_a_shard_goes(store, shards, **options):
        monkeypatch.undo()
        store.remove(shards[-1].name)
        write_file(source / "cat" / "00100.png", image(500))
        return write(store, shards, **options)

    monkeypatch.setattr(ingest_module, "write_index", while_a_shard_goes)
    assert ingest(config, store).number == 5
    assert_readable(store)
