"""Which epoch a run ends with."""

import pytest

from tests.runs import row, run_config
from transfer.training.history import kept_epoch


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, (4, None, 0.7)),
        ({"metric": "accuracy"}, (2, "accuracy", 0.9)),
        # A loss is as high as the accuracy here: the lowest counts.
        ({"metric": "loss"}, (1, "loss", 0.6)),
        ({"metric": "accuracy", "min_delta": 0.5}, (1, "accuracy", 0.6)),
    ],
)
def test_a_run_ends_with_its_last_epoch_or_with_the_best_of_its_last_phase(rule, expected):
    phases = run_config("/storage", epochs=4, early_stopping=rule).phases
    # The first epoch is of phase 0.
    kept = kept_epoch([row(epoch, value) for epoch, value in enumerate([0.99, 0.6, 0.9, 0.8, 0.7])], phases)
    epoch, best_by, value = expected
    assert (kept.phase, kept.epoch, kept.of, kept.best_by) == (1, epoch, 4, best_by)
    assert kept.value == (None if best_by is None else value)
