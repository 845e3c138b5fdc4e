"""What `transfer runs gc` and the end of a night remove, and what never goes."""

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from tests.published import publish_some
from tests.runs import assert_whole, save, store_run, sweep, trial
from transfer.catalog.run import Progress
from transfer.errors import CorruptObjectError
from transfer.maintenance.old_runs import AT_WORK, remove_old_nights, remove_old_runs
from transfer.maintenance.runs import list_runs, objects_of_runs, read_run
from transfer.storage import Log, open_store, put_document
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import Run

NOBODY_AT_WORK = timedelta(0)


@pytest.fixture
def store(folder_storage):
    return open_store(folder_storage)


def ids(runs):
    return [run.id for run in runs]


def days(count):
    """Starts of so many runs, a day apart."""
    return [f"2020-01-{day:02d}T00:00:00+00:00" for day in range(1, count + 1)]


def clean(store, keep, **options):
    return remove_old_runs(store, "digits", keep=keep, **{"at_work": NOBODY_AT_WORK, **options})


def test_runs_beyond_the_newest_go_whole_and_nothing_of_others(storage):
    store = open_store(storage)
    for name, started in zip("abcd", days(4), strict=True):
        store_run(store, name, started=started)
    other = store_run(store, "of-another-model")
    document = {"identity": {}, "config": {"name": "other"}, "dataset": {"name": "digits", "number": 1}}
    store.remove(f"{other.folder}/run.json")
    put_document(store, f"{other.folder}/run.json", document)
    before = list(store.list())
    assert ids(clean(store, 2).going) == ["a", "b"]
    assert list(store.list()) == before, "something went without being asked to"
    assert ids(clean(store, 2, remove=True).going) == ["a", "b"]
    assert {item.name.split("/")[1] for item in store.list("runs/")} == {"c", "d", "of-another-model"}
    assert clean(store, 2).going == ()


def test_what_is_in_use_stays_and_the_reason_is_said(store):
    for name in ("run-0", "tried", "of-sweep", "of-night", "over", "fold", "newest"):
        by = {"of-sweep": "sweeps/a", "of-night": "nights/digits/00000002", "over": "nights/digits/00000001"}
        identity = {"fold": "fold1of5"} if name == "fold" else {}
        store_run(store, name, started_by=by.get(name), identity=identity)
    store_run(store, "zz-newest")
    publish_some(store, 1, model="digits")
    put_document(store, "sweeps/a/sweep.json", {})
    put_document(store, "sweeps/a/trials/00000001/00000001.json", trial(1, run_id="tried").model_dump(mode="json"))
    for night in (1, 2):
        put_document(store, f"nights/digits/{night:08d}.json", {"started": "", "config": ""})
    cleaning = clean(store, 1)
    assert ids(cleaning.going) == ["fold", "newest", "over"]
    assert {kept.run.id: kept.why for kept in cleaning.kept} == {
        "run-0": "published as digits/1",
        "tried": "of sweeps/a, which is not over",
        "of-sweep": "of sweeps/a, which is not over",
        "of-night": "of nights/digits/00000002, which is not over",
    }
    put_document(store, "sweeps/a/results/00000001.json", {"result": sweep([]).model_dump(mode="json"), "page": "a"})
    put_document(store, "nights/digits/00000002/end.json", {})
    assert [kept.run.id for kept in clean(store, 1).kept] == ["run-0"]
    # Of all of them a checkpoint was written a moment ago.
    young = clean(store, 1, at_work=timedelta(hours=1))
    assert young.going == ()
    assert "perhaps being worked on" in young.kept[0].why


@pytest.mark.parametrize(
    ("log", "key", "rest"),
    [("uses", "started", {"frozen_parts": []}), ("reports", "at", {"split": "test", "files": {}})],
)
def test_a_run_is_perhaps_being_worked_on_for_a_day_after_an_attempt_or_a_report(store, log, key, rest):
    for name, started in zip("abc", days(3), strict=True):
        store_run(store, name, accuracies=(), started=started)
    for name, hours in (("a", 25), ("b", 23)):
        then = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
        Log(store, f"runs/{name}/{log}").append({key: then, **rest})
    cleaning = clean(store, 1, at_work=AT_WORK)
    assert (ids(cleaning.going), [kept.run.id for kept in cleaning.kept]) == (["a"], ["b"])


def test_runs_are_known_by_one_listing_even_if_one_ends_meanwhile(store, monkeypatch):
    run = store_run(store, "a", [0.9, 0.4, 0.3], complete=False)
    objects = objects_of_runs(store)
    with monkeypatch.context() as patched:
        patched.setattr(store, "list", None)
        assert read_run(store, "a", objects["a"]).progress.epoch == 2
    save(run, 4, Progress(complete=True))
    store.remove("runs/a/checkpoints/00000003.json")
    assert read_run(store, "a", objects["a"]).state == "finished"


def test_older_checkpoints_of_finished_runs_go_and_those_of_others_stay(store):
    done = store_run(store, "a", [0.9, 0.5, 0.4, 0.3])
    going_on = store_run(store, "b", [0.9, 0.5, 0.4, 0.3], complete=False)
    assert list(clean(store, 2, at_work=timedelta(days=1), remove=True).checkpoints) == []
    assert list(clean(store, 2, remove=True).checkpoints) == ["a"]
    assert Checkpoints(done).numbers() == [2, 4]
    assert Checkpoints(going_on).numbers() == [1, 2, 3, 4]
    assert_whole(done)


def test_a_removal_that_is_cut_short_leaves_no_run_and_the_next_one_removes_the_rest(store, monkeypatch):
    run = store_run(store, "a", [0.9, 0.5, 0.4])
    store_run(store, "b", started="2021-01-01T00:00:00+00:00")
    start = store.read("runs/a/run.json")
    store.put("runs/a/reports/00000001/report.json", b"report")
    put_document(store, "runs/a/reports/00000001.json", {"split": "test", "files": {}})
    objects, remove = len(list(store.list("runs/a/"))), store.remove
    for allowed in range(1, objects):
        left, lock = iter(range(1)), threading.Lock()

        def remove_one_and_die(name, left=left, lock=lock):
            with lock:
                if next(left, None) is None:
                    raise KeyboardInterrupt
            remove(name)

        monkeypatch.setattr(store, "remove", remove_one_and_die)
        with suppress(KeyboardInterrupt):
            clean(store, 1, remove=True)
        assert len(list(store.list("runs/a/"))) == objects - allowed
        assert ids(list_runs(store, "digits")) == ["b"]
        assert list(clean(store, 1).unfinished) == ["a"]
        # Whoever begins the same run again finds no report without its files, and no checkpoint without its arrays.
        store.put("runs/a/run.json", start)
        again = Run(store, "a", run.config, "digits", 1)
        assert all(store.exists(f"runs/a/reports/{number:08d}/report.json") for number in again.reports.numbers())
        for number in Checkpoints(again).numbers():
            assert Checkpoints(again).read(number).number == number
        remove("runs/a/run.json")
    monkeypatch.setattr(store, "remove", remove)
    clean(store, 1, remove=True)
    assert {item.name.split("/")[1] for item in store.list("runs/")} == {"b"}


def test_nothing_goes_while_a_document_cannot_be_read(store, folder_storage):
    for name, started in zip("ab", days(2), strict=True):
        store_run(store, name, started=started)
    store.put("models/digits/versions/00000001.json", b"{}")
    before = list(store.list())
    with pytest.raises(CorruptObjectError):
        clean(store, 1, remove=True)
    assert list(store.list()) == before


def test_a_night_removes_older_runs_of_nights_of_its_model_and_no_others(store):
    for number, started in enumerate(days(4), 1):
        store_run(store, f"digits-{number}", started=started, started_by=f"nights/digits/{number:08d}")
        put_document(store, f"nights/digits/{number:08d}.json", {"started": "", "config": ""})
    store_run(store, "digits-by-hand")
    store_run(store, "digits-of-others", started_by="nights/digits-2/00000001")
    # Nothing of it is asked but by what it was started.
    store_run(store, "digits-of-sweep", started_by="sweeps/a")
    store.put("runs/digits-of-sweep/uses/00000001.json", b"damaged")
    assert remove_old_nights(store, "digits", keep=2) == (), "somebody may be at work on what was just written to"
    gone = remove_old_nights(store, "digits", keep=2, but={"digits-2"}, at_work=NOBODY_AT_WORK)
    store.remove("runs/digits-of-sweep/run.json")
    assert ids(gone) == ["digits-1"]
    assert ids(list_runs(store, "digits")) == ["digits-by-hand", "digits-of-others", "digits-2", "digits-3", "digits-4"]
