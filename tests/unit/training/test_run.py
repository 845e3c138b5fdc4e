import os
from pathlib import Path

import pytest

from tests.digits import digits_config
from tests.published import first_version
from transfer.catalog.run import Progress
from transfer.dataset.manifest import dataset_log, load_dataset
from transfer.errors import (
    AlreadyExistsError,
    ConfigError,
    CorruptObjectError,
    RunBusyError,
    RunConflictError,
    TrainingError,
)
from transfer.storage import open_store, put_document
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import identity, load_run, open_run, run_id_for


@pytest.fixture
def dataset():
    counts = {split: {"0": 4, "1": 4} for split in ("train", "validation", "test")}
    return first_version("digits", ["0", "1"], counts=counts)


def config_in(folder: Path, **changes):
    return digits_config(folder / "images", str(folder / "storage"), **changes)


def test_the_same_configuration_finds_its_run_again(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    assert open_run(store, config, dataset).id == open_run(store, config, dataset).id
    assert load_run(store, run_id_for(config, dataset), config).config == config


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": {"count": 2}},
        {"publish": {"promote": "never"}},
        {"storage": "/elsewhere"},
        {"base": {**config_in(Path("/nowhere")).base.model_dump(), "accept_head": True}},
    ],
    ids=["workers", "publish", "storage", "accepted head"],
)
def test_what_is_not_learned_does_not_make_another_run(tmp_path, dataset, changes):
    assert run_id_for(config_in(tmp_path), dataset) == run_id_for(
        config_in(tmp_path).model_validate({**config_in(tmp_path).model_dump(), **changes}), dataset
    )


def test_a_head_that_was_not_accepted_when_a_run_was_started_can_be_accepted_later(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    run = open_run(store, config, dataset)
    accepting = config.model_copy(update={"base": config.base.model_copy(update={"accept_head": True})})
    assert load_run(store, run.id, accepting).config == accepting


def test_a_named_run_of_a_release_that_knew_files_by_name_only_goes_on(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    learned = identity(config, dataset)
    learned["base"]["model"] = config.base.model
    of_old = {"identity": learned, "config": config.model_dump(mode="json"), "dataset": {"name": "digits", "number": 1}}
    put_document(store, "runs/mine/run.json", of_old)
    assert open_run(store, config, dataset, run_id="mine").id == "mine"


def test_a_run_finds_the_files_of_its_base_where_the_configuration_has_them_now(tmp_path, dataset):
    before, now = tmp_path / "before.keras", tmp_path / "now.keras"
    before.write_bytes(b"base")
    config = config_in(tmp_path, base={"model": str(before)})
    run = open_run(open_store(config.storage), config, dataset)
    before.rename(now)
    moved = config_in(tmp_path, base={"model": str(now)})
    assert load_run(run.store, run.id, moved).config.base.model == str(now)
    # Of another network it takes nothing over: what was trained, the run says itself.
    now.write_bytes(b"another")
    assert load_run(run.store, run.id, moved).config.base.model == str(before)


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


def test_an_open_run_stays_with_its_dataset_version_whatever_is_added_or_tried(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    log = dataset_log(store, "digits")
    log.append(dataset.model_dump(), number=1)
    run = open_run(store, config, dataset, run_id="mine")
    later = dataset.model_copy(update={"number": 2, "parent": 1, "classes": ["0", "1", "2"]})
    log.append(later.model_dump(), number=2)
    assert load_dataset(store, "digits") == later
    for found in (run, load_run(store, "mine", config)):
        assert load_dataset(store, found.dataset_name, found.dataset_number) == dataset
    # The run is not moved to the new version, and the old one's document is not another.
    with pytest.raises(RunConflictError, match=r"different: dataset\."):
        open_run(store, config, later, run_id="mine")
    with pytest.raises(AlreadyExistsError):
        log.append(later.model_dump(), number=1)
    assert load_dataset(store, "digits", 1) == dataset


def test_a_run_whose_document_is_not_one_is_refused_with_a_sentence(tmp_path, dataset):
    config = config_in(tmp_path)
    store = open_store(config.storage)
    put_document(store, "runs/mine/run.json", {"identity": {}, "config": {"name": "n"}})
    for ask in (lambda: load_run(store, "mine", config), lambda: open_run(store, config, dataset, run_id="mine")):
        with pytest.raises(CorruptObjectError, match="dataset"):
            ask()


def test_of_two_processes_that_train_a_run_the_later_one_is_told_who_was_first(tmp_path, dataset):
    config = config_in(tmp_path)
    run = open_run(open_store(config.storage), config, dataset)
    checkpoints, nothing = Checkpoints(run), {"weights": [], "optimizer": []}
    for _ in range(2):  # The same again may be a request of its own that came late.
        checkpoints.save(1, Progress(epoch=1), **nothing)
    who = rf"it wrote checkpoint 1 \(process {os.getpid()} on \S+, at 20"
    with pytest.raises(RunBusyError, match=rf"Another process trains run `{run.id}`, too: {who}") as caught:
        checkpoints.save(1, Progress(epoch=2), **nothing)
    assert caught.value.exit_code == 14
    of_an_earlier_release = {"progress": {}, "weights": "a", "optimizer": "b"}
    run.checkpoints.append(of_an_earlier_release, number=2)
    with pytest.raises(RunBusyError, match=r"it wrote checkpoint 2\."):
        checkpoints.save(2, Progress(epoch=2), **nothing)


def test_a_number_that_is_free_again_is_not_taken_for_the_next_one(tmp_path, dataset):
    """The faster of two processes came to the run's end, and has removed older checkpoints."""
    run = open_run(open_store(config_in(tmp_path).storage), config_in(tmp_path), dataset)
    checkpoints, nothing = Checkpoints(run), {"weights": [], "optimizer": []}
    checkpoints.save(2, Progress(complete=True), **nothing)
    with pytest.raises(RunBusyError, match=rf"it wrote checkpoint 2 \(process {os.getpid()} on"):
        checkpoints.save(1, Progress(epoch=1), **nothing)
    assert checkpoints.numbers() == [2]


def test_a_run_that_does_not_exist_is_named(tmp_path):
    config = config_in(tmp_path)
    with pytest.raises(TrainingError, match="no run `nowhere`"):
        load_run(open_store(config.storage), "nowhere", config)


def test_a_dataset_version_of_another_depth_is_refused(tmp_path, dataset):
    """Its files are the same, so nothing else would tell: the model would see other pictures than the version says."""
    config = config_in(tmp_path, dataset={"source": "images", "depth": {"window": [0, 4095]}})
    with pytest.raises(ConfigError, match=r"dataset.depth is window 0 to 4,095, and .* was made with reject"):
        open_run(open_store(config.storage), config, dataset)
    windowed = dataset.model_copy(update={"depth": (0, 4095)})
    assert open_run(open_store(config.storage), config, windowed)
