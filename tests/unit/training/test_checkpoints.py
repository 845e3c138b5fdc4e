"""What a finished run keeps of its checkpoints. No network: a checkpoint is what it says and some arrays."""

import logging
import threading
from contextlib import suppress

import pytest

from tests.runs import assert_whole, row, save, store_run
from transfer.catalog.run import Progress
from transfer.config import StorageConfig
from transfer.errors import StorageError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints, keep_best_and_last, keep_last, superfluous

PATIENT = {"early_stopping": {"metric": "loss", "patience_epochs": 9}}


def trained(folder, accuracies, **options):
    return store_run(open_store(StorageConfig(uri=str(folder))), "a-run", accuracies, **options)


@pytest.mark.parametrize(
    ("accuracies", "options", "kept"),
    [
        ([0.9, 0.2, 0.4, 0.3], {}, [3, 4]),
        ([0.9, 0.2, 0.3, 0.4], {}, [4]),
        # What is watched is the loss, which is equal to the accuracy here: the lowest is the best.
        ([0.1, 0.3, 0.2, 0.4, 0.5], {"phase": PATIENT}, [3, 5]),
        ([0.9, 0.2, 0.4, 0.3], {"mid_epoch": True}, [6, 8]),
        ([None, None, None], {}, [3]),
    ],
    ids=["best of the last phase", "last is best", "early stopping", "checkpoints between", "no validation"],
)
def test_a_finished_run_keeps_its_best_and_its_last_checkpoint(tmp_path, accuracies, options, kept):
    run = trained(tmp_path, accuracies, **options)
    keep_best_and_last(run)
    assert Checkpoints(run).numbers() == kept
    assert len(list(run.store.list(f"{run.folder}/arrays/"))) == 2 * len(kept)
    assert run.store.exists(f"{run.folder}/tensorboard/events")
    assert_whole(run)
    assert superfluous(run.store, run.folder, run.config.phases) == []


def test_a_run_that_is_not_finished_keeps_all(tmp_path):
    run = trained(tmp_path, [0.1, 0.2, 0.3], complete=False)
    keep_best_and_last(run)
    assert Checkpoints(run).numbers() == [1, 2, 3]


def test_a_removal_that_is_cut_short_anywhere_leaves_a_whole_run_and_is_ended_by_the_next(tmp_path, monkeypatch):
    run = trained(tmp_path, [0.9, 0.2, 0.4, 0.3, 0.1])
    remove, lock = run.store.remove, threading.Lock()
    attempts = 0
    while superfluous(run.store, run.folder, run.config.phases):
        attempts += 1
        dies = iter([False])

        def remove_one_and_die(name, dies=dies):
            with lock:
                if next(dies, True):
                    raise KeyboardInterrupt
            remove(name)

        monkeypatch.setattr(run.store, "remove", remove_one_and_die)
        with suppress(KeyboardInterrupt):
            keep_best_and_last(run)
        assert_whole(run)
        assert 3 in Checkpoints(run).numbers()
    assert attempts == 3 + 6
    assert Checkpoints(run).numbers() == [3, 5]
    assert len(list(run.store.list(f"{run.folder}/arrays/"))) == 4


def test_a_storage_that_refuses_to_remove_costs_a_warning_and_not_the_run(tmp_path, monkeypatch, caplog):
    run = trained(tmp_path, [0.9, 0.2, 0.4])

    def refuse(name):
        raise StorageError(f"Could not remove {name}: access denied.")

    monkeypatch.setattr(run.store, "remove", refuse)
    with caplog.at_level(logging.WARNING):
        keep_best_and_last(run)
        keep_last(run.store, "sweeps/none/packs/none")
    assert "Older checkpoints of run a-run were not removed: Could not remove" in caplog.text
    assert_whole(run)


def test_whoever_reads_the_newest_checkpoint_finds_it_while_older_ones_go(tmp_path, monkeypatch):
    """A trial's driver looks at how far workers have come: what it listed may be gone when it reads it."""
    run = trained(tmp_path, [0.9, 0.2], complete=False)
    newest_number, log = run.checkpoints.newest_number, run.checkpoints

    def list_then_be_slow():
        found = newest_number()
        if found == 2:
            rows = (row(0, 0.9), row(1, 0.2), row(2, 0.5))
            save(run, 3, Progress(phase=2, history=rows, complete=True))
            keep_best_and_last(run)
        return found

    monkeypatch.setattr(log, "newest_number", list_then_be_slow)
    assert log.latest()[0] == 3
