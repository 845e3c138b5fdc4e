"""Forgetting images: what used them is found, and no later version has them, nor their bytes."""

import shutil

import numpy as np
import pytest

from tests.published import publish_some
from tests.runs import store_run
from tests.sourcing import LONG_AGO_S, config_of, image, read_ledger, write_classes, write_file
from transfer.dataset import forgetting
from transfer.dataset.decisions import forget_images, is_pending, read_decided
from transfer.dataset.index import INDEX_SCHEMA, read_images
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import latest_dataset
from transfer.dataset.shards import read_shard
from transfer.errors import DatasetError
from transfer.maintenance.forget import Holder, forget
from transfer.storage import open_store, sha256_hex

KEY, TWIN = "cat/00003.png", "cat/twin.png"
DIGEST = sha256_hex(image(3))


@pytest.fixture
def source(tmp_path):
    return write_classes(tmp_path / "images", cat=8, dog=8)


@pytest.fixture
def pets(source, folder_storage):
    """Two versions: the second one has two more images, in a shard of their own."""
    config = config_of(source, folder_storage, validation=0.0)
    store = open_store(config.storage)
    ingest(config, store)
    write_classes(source, first_seed=100, cat=2)
    ingest(config, store)
    return config, store


def keys_of(store, dataset):
    return {key for shard in dataset.shards for key in read_shard(store, shard)["key"].to_pylist()}


def stored_digests(store, dataset):
    whole = (read_shard(store, shard.whole) for shard in dataset.shards)
    return {sha256 for table in whole for sha256 in table["sha256"].to_pylist()}


def test_who_used_an_image_is_found_and_nothing_is_changed(pets):
    _, store = pets
    store_run(store, "with-it", dataset={"name": "pets", "number": 1})
    store_run(store, "elsewhere", dataset={"name": "others", "number": 1})
    publish_some(store, 1, model="pets")
    before = {item.name for item in store.list()}
    for name in (KEY, DIGEST):
        found = forget(store, "pets", [name], reason="asked to")
        assert [(each.sha256, each.keys) for each in found.images] == [(DIGEST, (KEY,))]
        assert found.holders == (Holder("pets/00000001", {"train": 1}), Holder("pets/00000002", {"train": 1}))
        assert (found.runs, found.models, found.version) == (("with-it",), ("pets/1",), None)
    assert {item.name for item in store.list()} == before


def test_a_forgotten_image_and_its_bytes_are_in_no_later_version_whatever_the_source_has(pets, source):
    config, store = pets
    before = latest_dataset(store, "pets")
    found = forget(store, "pets", [KEY], reason="asked to", remove=True)
    after = latest_dataset(store, "pets")
    assert (found.version, after.parent) == ("pets/00000003", 2)
    assert keys_of(store, after) == keys_of(store, before) - {KEY}
    assert DIGEST not in stored_digests(store, after)
    # The other shard stays, and the counts and the index follow.
    assert after.shards[0] == before.shards[1]
    assert after.counts["train"] == {"cat": 9, "dog": 8}
    for shard, table in zip(after.shards, read_images(store, after, INDEX_SCHEMA.names), strict=True):
        rows = read_shard(store, shard, columns=["key", "label", "sha256"])
        assert table.select(["key", "label"]).equals(rows.select(["key", "label"]))
        assert [sha256.hex() for sha256 in table["sha256"].to_pylist()] == rows["sha256"].to_pylist()
    # The source still has it, another copy of it, and another image under its key.
    assert ingest(config, store) == after
    write_file(source / TWIN, (source / KEY).read_bytes())
    write_file(source / KEY, image(55))
    write_classes(source, first_seed=200, dog=1)
    dataset = ingest(config, store)
    assert dataset.number == 4
    assert DIGEST not in stored_digests(store, dataset)
    ledger = read_ledger(store, dataset.rejects).to_pydict()
    assert dict(zip(ledger["key"], ledger["reason"], strict=True)) == {KEY: "forgotten", TWIN: "forgotten"}
    assert all("asked to" in detail for detail in ledger["detail"])


def test_bytes_of_a_removed_row_are_forgotten_too(pets, source):
    config, store = pets
    (source / KEY).unlink()
    assert DIGEST in stored_digests(store, ingest(config, store))
    found = forget(store, "pets", [DIGEST], reason="asked to", remove=True)
    assert found.holders[-1] == Holder("pets/00000003", {})
    dataset = latest_dataset(store, "pets")
    assert DIGEST not in stored_digests(store, dataset)
    assert sum(dataset.counts["train"].values()) == 17


def test_a_file_that_took_the_name_of_a_forgotten_image_stays(pets, source):
    config, store = pets
    write_file(source / "cat/moved.png", image(3))
    write_file(source / KEY, image(55), at_s=LONG_AGO_S + 5)
    other = sha256_hex(image(55))
    assert {DIGEST, other} <= stored_digests(store, ingest(config, store))
    with pytest.raises(DatasetError, match=f"2 images under the key {KEY}.*{DIGEST}") as refused:
        forget(store, "pets", [KEY], reason="asked to", remove=True)
    assert other in str(refused.value)
    forget(store, "pets", [DIGEST], reason="asked to", remove=True)
    write_classes(source, first_seed=200, dog=1)
    dataset = ingest(config, store)
    digests = stored_digests(store, dataset)
    assert other in digests
    assert DIGEST not in digests
    assert read_ledger(store, dataset.rejects).to_pydict()["key"] == ["cat/moved.png"]
    # By now the key means one image, and nobody wants its name again.
    forget(store, "pets", [KEY], reason="asked to", remove=True)
    assert [(each.sha256, each.keys) for each in read_decided(store, "pets").forgotten] == [
        (DIGEST, ()),
        (other, (KEY,)),
    ]


def test_forgetting_again_changes_nothing_and_goes_on_where_it_was_killed(pets, monkeypatch):
    _, store = pets
    before = latest_dataset(store, "pets")
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "dataset_log", None)
        with pytest.raises(TypeError):
            forget(store, "pets", [KEY], reason="asked to", remove=True)
    assert latest_dataset(store, "pets") == before
    assert [each.sha256 for each in read_decided(store, "pets").forgotten] == [DIGEST]
    assert is_pending(store, "pets", read_decided(store, "pets"))
    for _ in range(2):
        assert forget(store, "pets", [KEY], reason="again", remove=True).version == "pets/00000003"
        assert not is_pending(store, "pets", read_decided(store, "pets"))
    assert [each.reason for each in read_decided(store, "pets").forgotten] == ["asked to"]


def test_a_split_keeps_an_image_and_a_class_without_one_is_named(source, folder_storage, caplog):
    config = config_of(source, folder_storage, validation=0.3)
    store = open_store(config.storage)
    dataset = ingest(config, store)
    tables = read_images(store, dataset, ["key"], dataset.shards_of("validation"))
    every = [key for table in tables for key in table["key"].to_pylist()]
    with pytest.raises(DatasetError, match="would have none in validation"):
        forget(store, "pets", every, reason="asked to", remove=True)
    assert read_decided(store, "pets").forgotten == ()
    assert latest_dataset(store, "pets") == dataset
    cats = [key for key in every if key.startswith("cat/")]
    forget(store, "pets", cats, reason="asked to", remove=True)
    assert "none of the class cat in validation" in caplog.text
    assert latest_dataset(store, "pets").counts["validation"] == {**dataset.counts["validation"], "cat": 0}


def test_an_image_that_no_version_has_cannot_be_forgotten_nor_all_of_them(pets, source):
    _, store = pets
    with pytest.raises(DatasetError, match=r"has the image cat/nowhere\.png"):
        forget(store, "pets", [KEY, "cat/nowhere.png"], reason="asked to", remove=True)
    assert read_decided(store, "pets").forgotten == ()
    every = sorted(keys_of(store, latest_dataset(store, "pets")))
    shutil.rmtree(source)
    with pytest.raises(DatasetError, match="none to train on"):
        forget(store, "pets", every, reason="asked to", remove=True)
    assert read_decided(store, "pets").forgotten == ()


def test_the_features_of_the_other_images_are_copied(pets):
    _, store = pets
    before = latest_dataset(store, "pets")
    copied = []
    forgetting.take_out(store, "pets", {DIGEST}, on_copied=copied.append)
    (shard,), again = copied
    assert again == [shard]
    assert shard.sources == (before.shards[0],)
    digests = read_shard(store, before.shards[0])["sha256"].to_pylist()
    assert [digests[row] for _, row in shard.origins] == read_shard(store, shard.shard)["sha256"].to_pylist()
    assert np.array_equal(shard.labels, read_shard(store, shard.shard)["label"].to_numpy())


def test_the_next_ingest_finishes_what_a_killed_command_had_decided(pets):
    config, store = pets
    forget_images(store, "pets", {DIGEST: ()}, reason="asked to")
    assert DIGEST in stored_digests(store, latest_dataset(store, "pets"))
    now = ingest(config, store)
    assert now == latest_dataset(store, "pets")
    assert DIGEST not in stored_digests(store, now)
    assert ingest(config, store) == now
