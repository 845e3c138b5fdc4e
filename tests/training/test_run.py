from pathlib import Path

import pytest

from tests.digits import digits_config
from transfer.dataset.manifest import Dataset
from transfer.errors import RunConflictError, TrainingError
from transfer.storage import open_store
from transfer.training.run import load_run, open_run, run_id_for


@pytest.fixture
def dataset():
    counts = {split: {"0": 4, "1": 4} for split in ("train", "validation", "test")}
    return Dataset(
        name="digits",
        number=1,
        parent=None,
        classes=["0", "1"],
        shards=[],
        counts=counts,
        rejects=None,
        reject_counts={},
        source={},
    )


def config_in(folder: Path, **changes):
    return digits_config(folder / "images", str(folder / "storage"), **changes)


def test_the_same_configuration_finds_its_run_again(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    assert open_run(store, config, dataset).id == open_run(store, config, dataset).id
    assert load_run(store, run_id_for(config, dataset), config).config == config


@pytest.mark.parametrize(
    "changes",
    [{"workers": {"count": 2}}, {"publish": {"promote": False}}, {"storage": "/elsewhere"}],
    ids=["workers", "publish", "storage"],
)
def test_what_is_not_learned_does_not_make_another_run(tmp_path, dataset, changes):
    assert run_id_for(config_in(tmp_path), dataset) == run_id_for(
        config_in(tmp_path).model_validate({**config_in(tmp_path).model_dump(), **changes}), dataset
    )


def test_another_dataset_version_is_another_run(tmp_path, dataset):
    config = config_in(tmp_path)
    assert run_id_for(config, dataset) != run_id_for(config, dataset.model_copy(update={"number": 2}))


def test_a_run_id_used_for_another_configuration_is_refused_with_the_differing_keys(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    open_run(store, config, dataset, run_id="mine")
    other = config_in(tmp_path, training={"batch_size": 8, "seed": 3})
    with pytest.raises(RunConflictError, match=r"different: training\.batch_size, training\.seed\."):
        open_run(store, other, dataset, run_id="mine")


def test_a_run_that_does_not_exist_is_named(tmp_path):
    config = config_in(tmp_path)
    with pytest.raises(TrainingError, match="no run `nowhere`"):
        load_run(open_store(config.storage), "nowhere", config)
