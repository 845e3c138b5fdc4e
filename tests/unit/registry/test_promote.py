"""What serves: going back, against damage and against others at the same time, and the folder that servers read."""

import threading
from itertools import islice
from pathlib import Path

import pytest

from tests.published import MODEL, PollingServer, left_of, publish_some
from transfer.catalog import layout
from transfer.errors import PromotionConflictError, RegistryError
from transfer.registry import promote as module
from transfer.registry.promote import complete_serving_folder, promote, read_serving, roll_back
from transfer.registry.retention import remove_old_versions
from transfer.registry.versions import current_promotion, list_promotions, promotions_log
from transfer.storage import open_store


def served(store, model=MODEL):
    return [promotion.version for _, promotion in list_promotions(store, model)][::-1]


def test_by_default_what_served_before_serves_again(store):
    publish_some(store, 3, promoted=[1, 2, 3])
    done = roll_back(store, MODEL, reason="3 is slow")
    assert done.changed
    assert (done.promotion.version, done.promotion.replaces, done.promotion.reason) == (2, 3, "3 is slow")
    assert current_promotion(store, MODEL) == done.promotion
    assert served(store) == [1, 2, 3, 2]


def test_going_back_twice_ends_where_it_began(store):
    publish_some(store, 2, promoted=[1, 2])
    roll_back(store, MODEL, reason="back")
    assert roll_back(store, MODEL, reason="and forth").promotion.version == 2
    assert served(store) == [1, 2, 1, 2]


def test_a_version_can_be_named_even_one_that_never_served(store):
    publish_some(store, 4, promoted=[2, 4])
    assert roll_back(store, MODEL, reason="why not", to=3).promotion.version == 3
    assert read_serving(store, MODEL).before == 4


def test_naming_what_serves_changes_nothing(store):
    publish_some(store, 2, promoted=[1, 2])
    before = current_promotion(store, MODEL)
    done = roll_back(store, MODEL, reason="again", to=2)
    assert (done.promotion, done.changed) == (before, False)
    assert served(store) == [1, 2]


def test_without_anything_to_go_back_to_it_says_so(store):
    publish_some(store, 2)
    with pytest.raises(RegistryError, match="No version of model `flowers` is promoted"):
        roll_back(store, MODEL, reason="oh")
    publish_some(store, 1)
    assert roll_back(store, MODEL, reason="first", to=3).changed
    with pytest.raises(RegistryError, match="Version 3 is the only one of model `flowers` that ever served"):
        roll_back(store, MODEL, reason="oh")


def test_a_version_that_does_not_exist_is_refused_with_those_that_do(store):
    publish_some(store, 3, promoted=[1, 2])
    with pytest.raises(RegistryError, match=r"has no version 9 .* Its versions: 1, 2, 3"):
        roll_back(store, MODEL, reason="typo", to=9)


def test_a_version_that_was_removed_is_refused(store):
    publish_some(store, 4, promoted=[1, 2, 3, 4])
    remove_old_versions(store, MODEL, keep=1, remove=True)
    with pytest.raises(RegistryError, match="Version 1 of model `flowers` was removed"):
        roll_back(store, MODEL, reason="too late", to=1)
    assert roll_back(store, MODEL, reason="still there").promotion.version == 3


@pytest.mark.parametrize("damage", ["other bytes", "missing"])
def test_a_version_that_is_not_intact_is_not_promoted(storage, damage):
    store = open_store(storage)
    versions = publish_some(store, 2, promoted=[1, 2])
    name = f"{versions[0].folder}/variables/variables.index"
    store.remove(name)
    if damage == "other bytes":
        store.put(name, b"index 7")
    with pytest.raises(RegistryError, match=r"Version 1 .* is not intact: .*variables\.index"):
        roll_back(store, MODEL, reason="back")
    assert served(store) == [1, 2]


def test_a_promotion_meanwhile_wins_and_the_rollback_says_who_did(store, monkeypatch):
    _, _, third = publish_some(store, 3, promoted=[1, 2])
    load = module.load_version

    def slowly(store, model, number):
        version = load(store, model, number)
        promote(store, third, reason="the nightly one")
        return version

    monkeypatch.setattr(module, "load_version", slowly)
    with pytest.raises(PromotionConflictError, match=r"Version 1 .* version 3 was, .* \(the nightly one\)") as caught:
        roll_back(store, MODEL, reason="back")
    assert caught.value.exit_code == 14
    assert served(store) == [1, 2, 3]


def test_of_rollbacks_at_once_each_wins_its_own_entry_or_is_told_who_won(storage):
    store = open_store(storage)
    publish_some(store, 4, promoted=[1, 2, 3])
    entries = 3
    for attempt in range(10 if storage.uri.startswith("s3:") else 50):
        present = current_promotion(store, MODEL).version
        targets = [number for number in (1, 2, 3, 4) if number != present][:2]
        done, lost, barrier = [], [], threading.Barrier(2)

        def go(to, attempt=attempt, done=done, lost=lost, barrier=barrier):
            barrier.wait()
            try:
                done.append(roll_back(store, MODEL, reason=f"{attempt}: to {to}", to=to).promotion)
            except PromotionConflictError as error:
                lost.append(error.message)

        threads = [threading.Thread(target=go, args=(to,)) for to in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done
        assert len(done) + len(lost) == 2
        assert all(f"version {done[0].version} was" in message for message in lost)
        newest = list(islice(list_promotions(store, MODEL), len(done)))
        entries += len(done)
        assert newest[0][0] == entries
        assert {promotion for _, promotion in newest} == set(done)
        assert [promotion.replaces for _, promotion in newest][::-1] == [present, newest[-1][1].version][: len(done)]


def test_a_rollback_leaves_files_as_they_are(folder_storage):
    store = open_store(folder_storage)
    publish_some(store, 2, promoted=[1, 2])
    before = {path: path.stat().st_mtime_ns for path in Path(folder_storage.uri).rglob("versions/**/*")}
    roll_back(store, MODEL, reason="back")
    assert {path: path.stat().st_mtime_ns for path in Path(folder_storage.uri).rglob("versions/**/*")} == before
    assert left_of(store, 2)


def served_files(store, model=MODEL):
    """Files in the folder for servers, by promotion."""
    folder, found = f"{layout.serving_folder(model)}/", {}
    for item in store.list(folder):
        number, _, name = item.name.removeprefix(folder).partition("/")
        found.setdefault(int(number), {})[name] = store.read(item.name)
    return found


def files_of(store, version):
    return {file.name: store.read(f"{version.folder}/{file.name}") for file in version.files}


def test_the_folder_for_servers_has_what_was_promoted_and_a_rollback_is_a_higher_number(store):
    versions = publish_some(store, 4, promoted=[1, 3])
    roll_back(store, MODEL, reason="3 is slow")
    assert served_files(store) == {
        1: files_of(store, versions[0]),
        2: files_of(store, versions[2]),
        3: files_of(store, versions[0]),
    }


def test_what_a_job_that_died_left_out_of_the_folder_is_completed(store):
    versions = publish_some(store, 3, promoted=[1])
    # It died after the log's entry, and after one file.
    entry = {"version": 2, "since": "now", "reason": "better", "replaces": 1}
    promotions_log(store, MODEL).append(entry, number=2)
    store.put(f"{layout.serving_folder(MODEL)}/00000002/variables/variables.index", b"index 1")
    complete_serving_folder(store, MODEL)
    assert served_files(store)[2] == files_of(store, versions[1])
    # Whoever promotes what serves already completes it, too.
    promotions_log(store, MODEL).append({**entry, "version": 3, "replaces": 2}, number=3)
    promote(store, versions[2], reason="again")
    assert served_files(store)[3] == files_of(store, versions[2])


def test_a_server_that_polls_meets_only_whole_promoted_versions(folder_storage):
    store = open_store(folder_storage)
    versions = publish_some(store, 4)
    with PollingServer(Path(folder_storage.uri, layout.serving_folder(MODEL))) as server:
        for turn in range(40):
            promote(store, versions[turn % 4], reason=f"turn {turn}")
    assert len(server.served) > 1
    for number, contents in server.served.items():
        assert contents == [files_of(store, versions[(number - 1) % 4])]
    assert sorted(served_files(store)) == list(range(1, 41))


def test_what_others_keep_in_the_folder_for_servers_stays(folder_storage):
    store = open_store(folder_storage)
    publish_some(store, 3, promoted=[1, 2, 3])
    folder = Path(folder_storage.uri, layout.serving_folder(MODEL))
    (folder / "models.config").write_text("of a server")
    remove_old_versions(store, MODEL, keep=3, remove=True)
    assert sorted(path.name for path in folder.iterdir()) == ["00000002", "00000003", "models.config"]


def test_only_the_copies_of_the_last_two_promotions_outlive_a_gc(store):
    publish_some(store, 3, promoted=[1, 2, 1, 3])
    assert remove_old_versions(store, MODEL, keep=3).served == (1, 2)
    assert sorted(served_files(store)) == [1, 2, 3, 4]
    remove_old_versions(store, MODEL, keep=3, remove=True)
    assert sorted(served_files(store)) == [3, 4]
