"""What a driver shows of the epochs that workers train, as the run's checkpoints tell of them."""

from pathlib import Path

from tests.runs import run_config, store_run
from transfer.storage import open_store
from transfer.training.distributed import _epochs_followed
from transfer.training.run import load_run


def test_epochs_that_end_are_shown_once_and_a_damaged_checkpoint_of_before_is_passed_over(folder_storage):
    config = run_config(folder_storage.uri)
    store = open_store(folder_storage)
    store_run(store, "run-0", [0.9, 0.4], complete=False)
    run = load_run(store, "run-0", config)
    newest = run.checkpoints.numbers()[-1]
    document = run.checkpoints.read(newest)
    damaged = Path(store.uri, run.folder, "checkpoints", f"{newest:08d}.json")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    shown = []
    with _epochs_followed(run, 1, shown.append):
        run.checkpoints.append(document, number=newest + 1)
    assert [row.epoch for row in shown] == [document["progress"]["history"][1]["epoch"]]
