"""Sweeps on a real Ray cluster: and repeated. Their kills, and more kinds, are in tests/proof/on_ray."""

from pathlib import Path

import pytest

import transfer
from tests.digits import GRID, digits_config, ingest_some_digits, statuses, swept
from tests.documentation import ON_RAY, PAGES, blocks
from tests.public_face import run_examples
from transfer import jobs
from transfer.errors import BackboneError, DatasetError, TrainingError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run
from transfer.tuning.driver import run_sweep


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def checkpoints_of(config, result):
    """How many checkpoints each trial's run has."""
    store = open_store(config.storage)
    return [len(Checkpoints(load_run(store, trial.run_id, config)).numbers()) for trial in result.trials]


def test_a_sweep_tries_all_and_the_best_on_the_validation_split_wins(ray_cluster, digits):
    config, outcome = swept(digits, GRID, name="grid")
    result = outcome.result
    assert statuses(result) == ["finished"] * 4
    assert [trial.packed_with for trial in result.trials] == [2, 2, 1, 1]
    assert outcome.winner.value == max(trial.value for trial in result.trials)
    assert all(trial.value == trial.rows[-1].validation_accuracy for trial in result.trials)
    assert result.images == digits[1].rows("validation")
    assert outcome.winner.run_id in Path(outcome.page_uri).read_text()
    # Again: found, with nothing trained and no process started.
    before = checkpoints_of(config, result)
    _, again = swept(digits, GRID, name="grid")
    assert again == outcome
    assert checkpoints_of(config, result) == before


def test_a_sweep_in_python_is_a_table_and_the_run_of_the_winner(ray_cluster, digits, tmp_path, monkeypatch):
    phases = [{"unfreeze": 0, "epochs": 2, "learning_rate": 1e-3}]
    config = digits_config(digits[0], str(digits[0].parent / "storage"), phases=phases, publish={"enabled": False})
    (tmp_path / "flowers.yaml").write_text(config.model_dump_json())
    monkeypatch.chdir(tmp_path)
    (block,) = (block for page in PAGES for block in blocks(page) if ON_RAY in block.text)
    names = {"transfer": transfer}
    exec(compile(block.text, block.name, "exec"), names)  # noqa: S102 - what the documentation says
    found = names["found"]
    assert list(found.trials.index) == [1, 2]
    assert list(found.trials.columns) == ["phases.0.learning_rate", "value", "status", "epochs", "seconds"]
    assert found.best.config.phases[0].learning_rate == found.values["phases.0.learning_rate"]
    assert found.best.history.validation_accuracy.iloc[-1] == found.trials.value.max()
    # The examples of docstrings are the same sweep.
    run_examples("sweep", transfer.sweep)
    run_examples("Sweep", transfer.Sweep)


def test_a_sweep_whose_trials_all_fail_says_why(ray_cluster, digits):
    with pytest.raises(TrainingError, match=r"No trial of sweep .* loss became"):
        swept(
            digits,
            {"space": {"phases.0.learning_rate": [1e38]}, "search": "grid"},
            name="hopeless",
            optimizer="sgd",
        )


def test_a_depth_that_the_network_does_not_have_is_found_before_images_are_read(ray_cluster, digits, tmp_path):
    sweep = {"space": {"phases.0.unfreeze": [0, 9]}, "search": "grid"}
    config = digits_config(digits[0], str(tmp_path / "storage"), sweep=sweep)
    with pytest.raises(BackboneError, match=r"sweep\.space\.phases\.0\.unfreeze: unfreeze is 9"):
        jobs.sweep(config)
    assert not (tmp_path / "storage/shards").exists()


def test_without_a_validation_split_there_is_nothing_to_compare(digits):
    source, dataset = digits
    config = digits_config(source, str(source.parent / "storage"), sweep=GRID)
    others = [shard for shard in dataset.shards if shard.split != "validation"]
    with pytest.raises(DatasetError, match="validation split"):
        run_sweep(config, dataset.model_copy(update={"shards": others}), open_store(config.storage))
