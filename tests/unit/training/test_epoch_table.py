"""What a person sees of each epoch, in a log. On a terminal: tests/system/cli/test_terminal.py."""

import pytest

from transfer.catalog.run import EpochRow
from transfer.config import PhaseConfig
from transfer.training.epoch_table import EpochTable

PHASES = [
    PhaseConfig(epochs=9, early_stopping={"patience_epochs": 2}),
    PhaseConfig(unfreeze=2, epochs=2),
    PhaseConfig(unfreeze="all", epochs=1, early_stopping={}),
]
# Phase and validation loss. The first phase ends by its patience, the second with its last epoch.
EPOCHS = ((0, 1.0), (0, 0.5), (0, 0.7), (0, 0.6), (1, 0.4), (1, 0.8), (2, 0.9))


def rows(epochs=EPOCHS):
    return [
        EpochRow(
            phase=phase,
            epoch=epoch,
            loss=1.25,
            accuracy=0.5,
            validation_loss=loss,
            validation_accuracy=None if loss is None else 0.25,
            learning_rate=1e-3,
            seconds=1.0,
            images_per_second=1234.5,
        )
        for epoch, (phase, loss) in enumerate(epochs)
    ]


def shown(capsys, epochs, history=()):
    table = EpochTable(PHASES, history)
    for row in epochs:
        table.show(row)
    out, err = capsys.readouterr()
    assert out == ""
    return err.replace(" ", " ").splitlines()


def test_each_epoch_is_a_line_that_says_where_it_is_and_whether_it_is_the_best_so_far(capsys):
    lines = shown(capsys, rows())
    assert lines[1] == (
        "phase 0 (head), epoch 2/9: loss 1.2500, accuracy 50.0 %, validation loss 0.5000, validation accuracy 25.0 %, "
        "learning rate 1.0e-03, 1,234 images/s, best so far"
    )
    assert [line.partition(":")[0] for line in lines] == [
        *(f"phase 0 (head), epoch {epoch}/9" for epoch in (1, 2, 3, 4)),
        "Going back to epoch 2 of phase 0 (head), the best epoch of the phase.",
        *(f"phase 1 (last 2 blocks), epoch {epoch}/2" for epoch in (1, 2)),
        "phase 2 (all blocks), epoch 1/1",
    ]
    assert ["best so far" in line for line in lines] == [True, True, False, False, False, True, False, True]


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_run_that_goes_on_shows_only_what_is_new_and_knows_what_was_best(capsys, seen):
    lines = shown(capsys, rows())
    assert shown(capsys, rows()[seen:], rows()[:seen]) == lines[seen:]


def test_nothing_is_best_without_a_validation_split(capsys):
    (line,) = shown(capsys, rows([(1, None)]))
    assert "validation" not in line
    assert "best" not in line


def test_the_last_epoch_that_ended_has_a_name():
    assert EpochTable(PHASES).place is None
    assert EpochTable(PHASES, rows()[:6]).place == "epoch 2 of phase 1"
