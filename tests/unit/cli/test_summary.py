"""What a job says at its end."""

from dataclasses import replace

import numpy as np
import pytest

from tests.digits import digits_config, ingested_digits
from transfer.catalog.run import EpochRow
from transfer.cli import summary
from transfer.evaluation.against import AgainstServing
from transfer.evaluation.metrics import Tally
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.jobs import TrainOutcome
from transfer.storage import open_store
from transfer.training.run import Run


@pytest.fixture
def outcome_of(tmp_path):
    """The outcome of a run that gave these answers to three images, of the classes 0, 0 and 1."""

    def make(answers, **dataset_changes):
        dataset = ingested_digits()[1].model_copy(update=dataset_changes)
        config = digits_config(tmp_path, str(tmp_path / "storage"))
        probabilities = np.eye(2, dtype=np.float32)[answers]
        predictions = Predictions(list("abc"), np.array([0, 0, 1], np.int32), probabilities, ["zero", "one"])
        figures = {"loss": 1.0, "accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.5}
        report = Report(
            name="digits",
            dataset=dataset.reference,
            run_id="digits-0123",
            split="test",
            base="glyph_base.keras",
            metrics=Tally.of(predictions).metrics(),
            history=[EpochRow(phase=1, epoch=0, learning_rate=1e-3, seconds=1.0, **figures)],
            mistakes=[],
            counts={},
            config={},
        )
        run = Run(open_store(config.storage), report.run_id, config, dataset.name, dataset.number)
        return TrainOutcome(run, dataset, report, "report.html", None, {"train": 12.345, "evaluate": 1.0})

    return make


def test_people_get_accuracies_with_intervals_beside_the_commonest_class(outcome_of):
    rejected = {"rejects": "rejects/ab.parquet", "reject_counts": {"no_label": 1, "unreadable": 2}}
    outcome = outcome_of([0, 0, 1], **rejected)
    said = {name: str(value).replace(" ", " ") for name, value in summary.for_people(outcome).items()}
    assert said["test accuracy"] == "100.0 % of 3 images (95 % interval 43.9 % to 100.0 %)"
    images = outcome.dataset.rows("validation")
    assert said["validation accuracy"].startswith(f"50.0 % of {images} images (95 % interval ")
    assert said["commonest class"] == "66.7 %, by always answering `zero`"
    assert said["warning"] == "None"
    assert said["weights of"] == "epoch 1 of 1 of phase 1, the last one"
    assert said["time"] == "13 s: train 12 s, evaluate 1.0 s"
    assert said["rejected"] == "3 files (1 no label, 2 unreadable), listed in rejects/ab.parquet"


def test_classes_that_are_never_answered_are_named(outcome_of):
    outcome = outcome_of([0, 0, 1])
    assert summary.for_people(outcome)["never answered"] is None
    outcome = replace(outcome, report=outcome.report.model_copy(update={"untrained_classes": ("one",)}))
    assert summary.for_people(outcome)["never answered"] == "`one` (no training images)"
    assert summary.for_programs(outcome)["untrained_classes"] == ["one"]


def test_a_network_that_always_answers_the_commonest_class_is_warned_of(outcome_of):
    assert "no better than the commonest class" in summary.for_people(outcome_of([0, 0, 0]))["warning"]
    assert [summary.for_programs(outcome_of([0, 0, last]))["beats_commonest_class"] for last in (0, 1)] == [False, True]


def test_what_served_is_beside_the_run_for_people_and_for_programs(outcome_of):
    outcome = outcome_of([0, 0, 1])
    assert summary.for_programs(outcome)["against_serving"] is None
    serving = AgainstServing(
        version=3, dataset="digits/00000001", split="test", accuracy=0.5, gained=2, lost=1, p_value=0.5
    )
    beside = replace(outcome, report=outcome.report.model_copy(update={"serving": serving}))
    assert summary.for_people(beside)["against what served"] == serving.text
    assert summary.for_programs(beside)["against_serving"]["gained"] == 2
