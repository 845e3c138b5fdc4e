"""Removing old versions: what goes, what stays, and that nobody ever meets half of one or serves one that is gone."""

from pathlib import Path

import pytest

from tests.published import MODEL, assert_all_intact, left_of, numbers, publish_some
from transfer.catalog import layout
from transfer.errors import CorruptObjectError, RegistryError
from transfer.registry.promote import promote, roll_back
from transfer.registry.retention import pin_version, remove_old_versions, unpin_version
from transfer.registry.retention_log import announce_promotion, read_retention, retention_log
from transfer.registry.versions import current_promotion, download_version, list_versions, load_version
from transfer.storage import Log, open_store


def everything(store):
    return {item.name: store.read(item.name) for item in store.list()}


def going(cleaning):
    return [version.number for version in cleaning.plan.going]


def kept(cleaning):
    return {each.version.number: each.why for each in cleaning.plan.kept}


def test_without_being_asked_to_nothing_changes(store):
    publish_some(store, 5, promoted=[1, 2, 3, 4, 5])
    before = everything(store)
    assert going(remove_old_versions(store, MODEL, keep=2)) == [1, 2, 3]
    assert everything(store) == before


def test_versions_beyond_the_newest_go_with_all_their_objects(store):
    publish_some(store, 5, promoted=[1, 2, 3, 4, 5])
    assert going(remove_old_versions(store, MODEL, keep=2, remove=True)) == [1, 2, 3]
    assert numbers(store) == [4, 5]
    assert [left_of(store, number) for number in (1, 2, 3)] == [[], [], []]
    assert_all_intact(store)
    assert going(remove_old_versions(store, MODEL, keep=2, remove=True)) == []


def test_a_folder_that_tensorflow_serving_watches_has_no_trace_of_what_went(folder_storage):
    store = open_store(folder_storage)
    publish_some(store, 3)
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert sorted(path.name for path in Path(folder_storage.uri, layout.versions_log(MODEL)).iterdir()) == [
        "00000003",
        "00000003.json",
    ]


def test_what_serves_what_served_before_and_what_is_pinned_stay(store):
    publish_some(store, 6, promoted=[5, 1, 2])
    pin_version(store, MODEL, 3, reason="the paper's")
    cleaning = remove_old_versions(store, MODEL, keep=1, remove=True)
    assert kept(cleaning) == {1: "served before the present one", 2: "promoted", 3: "pinned: the paper's"}
    assert going(cleaning) == [4, 5]
    assert_all_intact(store)
    assert roll_back(store, MODEL, reason="back").promotion.version == 1


def test_served_before_means_another_version_not_another_entry(store):
    first, *_ = publish_some(store, 4, promoted=[1, 2])
    Log(store, f"models/{MODEL}/promotions").append(
        current_promotion(store, MODEL).model_copy(update={"reason": "kept", "replaces": 2}).model_dump(), number=3
    )
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert numbers(store) == [1, 2, 4]
    assert roll_back(store, MODEL, reason="back").promotion.version == first.number


def test_without_a_promotion_the_newest_stay(store):
    publish_some(store, 3)
    remove_old_versions(store, MODEL, keep=2, remove=True)
    assert numbers(store) == [2, 3]


def test_another_model_is_not_touched(store):
    publish_some(store, 3)
    publish_some(store, 3, model="flowers-2")
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert numbers(store, "flowers-2") == [1, 2, 3]
    assert_all_intact(store, "flowers-2")


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_version_always_stays(store, keep):
    with pytest.raises(ValueError, match="must be 1 or more"):
        remove_old_versions(store, MODEL, keep=keep)


def test_what_is_being_published_is_left_alone(store):
    publish_some(store, 2)
    folder = f"{layout.versions_log(MODEL)}/00000003"
    store.put(f"{folder}/assets.extra/claim.json", b"{}")
    store.put(f"{folder}/variables/variables.index", b"under way")
    publish_some(store, 2)
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert numbers(store) == [5]
    assert left_of(store, 3) == ["/assets.extra/claim.json", "/variables/variables.index"]


def test_a_removed_version_is_refused_by_its_number(store):
    first, *_ = publish_some(store, 2)
    remove_old_versions(store, MODEL, keep=1, remove=True)
    for ask in (
        lambda: load_version(store, MODEL, 1),
        lambda: promote(store, first, reason="again"),
        lambda: pin_version(store, MODEL, 1, reason="mine"),
        lambda: unpin_version(store, MODEL, 1),
    ):
        with pytest.raises(RegistryError, match="Version 1 of model `flowers` was removed"):
            ask()
    assert current_promotion(store, MODEL) is None


def test_a_reader_of_a_version_that_goes_meanwhile_is_told(store, tmp_path):
    first, *_ = publish_some(store, 2)
    remove_old_versions(store, MODEL, keep=1, remove=True)
    with pytest.raises(RegistryError, match="Version 1 of model `flowers` was removed"):
        download_version(store, first, tmp_path)


def test_a_list_made_meanwhile_has_the_versions_that_are_left(store):
    publish_some(store, 3)
    listing = list_versions(store, MODEL)
    assert next(listing).number == 1
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert [version.number for version in listing] == [3]


def test_a_publisher_that_stood_still_does_not_get_the_number_of_a_removed_version(store, monkeypatch):
    publish_some(store, 1)
    real, seen = store.list, []

    def list_then_stand_still(prefix=""):
        found = list(real(prefix))
        if not seen:
            seen.append(prefix)
            publish_some(store, 3)
            remove_old_versions(store, MODEL, keep=1, remove=True)
        return iter(found)

    monkeypatch.setattr(store, "list", list_then_stand_still)
    (version,) = publish_some(store, 1)
    assert version.number == 5
    promote(store, version, reason="late")
    assert_all_intact(store)


def test_nothing_goes_while_a_document_cannot_be_read(storage):
    store = open_store(storage)
    publish_some(store, 4, promoted=[1, 2])
    name = "models/flowers/versions/00000003.json"
    data = store.read(name)
    store.remove(name)
    store.put(name, data.replace(b"run-2", b"run-9"))
    before = everything(store)
    with pytest.raises(CorruptObjectError):
        remove_old_versions(store, MODEL, keep=1, remove=True)
    assert everything(store) == before


def test_a_pin_keeps_its_first_reason_until_it_is_taken_away(store):
    publish_some(store, 3)
    pin = pin_version(store, MODEL, 1, reason="first")
    assert pin_version(store, MODEL, 1, reason="second") == pin
    assert unpin_version(store, MODEL, 1) == pin
    assert unpin_version(store, MODEL, 1) is None
    assert [retention_log(store, MODEL).read(number)["action"] for number in (1, 2)] == ["pin", "unpin"]
    assert retention_log(store, MODEL).numbers() == [1, 2]
    assert going(remove_old_versions(store, MODEL, keep=2)) == [1]


@pytest.mark.parametrize("change", [pin_version, unpin_version])
def test_only_a_version_that_exists_can_be_pinned(store, change):
    publish_some(store, 1)
    with pytest.raises(RegistryError, match="has no version 2"):
        change(store, MODEL, 2, reason="typo")
    assert retention_log(store, MODEL).numbers() == []


def test_what_is_about_to_be_promoted_stays_until_it_is_or_another_was_first(store):
    versions = publish_some(store, 6, promoted=[4, 5])
    announce_promotion(store, MODEL, 2, promotion=3)
    assert kept(remove_old_versions(store, MODEL, keep=1, remove=True))[2] == "about to be promoted"
    assert numbers(store) == [2, 4, 5, 6]
    promote(store, versions[5], reason="another was first")
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert numbers(store) == [5, 6]
    assert read_retention(store, MODEL).removed == (1, 2, 3, 4)
