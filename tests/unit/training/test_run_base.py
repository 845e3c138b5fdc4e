"""A run and the network that it began with."""

import itertools

import keras
import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.trained import build_model, models_under, train
from transfer.catalog.run import Progress
from transfer.demo import BASE_PATH
from transfer.errors import BaseChangedError, RunConflictError
from transfer.evaluation.evaluate import evaluate_run
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.loop import Training
from transfer.training.run import hold_to_base, open_run, pinned_base
from transfer.training.shared_models import restore_model, untrained_model
from transfer.training.step import create_strategy

_SEEDS = itertools.count()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    source, dataset = ingest_some_digits(folder)
    return digits_config(source, str(folder / "storage")), dataset


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    """Bytes of a base that has the same layers and other weights."""
    path = tmp_path_factory.mktemp("other") / "other.keras"
    keras.models.clone_model(keras.models.load_model(BASE_PATH, compile=False)).save(path)
    return path.read_bytes()


@pytest.fixture
def own_base(digits, tmp_path):
    """A configuration whose base lies in a file of its own, and that file."""
    config, path = digits[0], tmp_path / "base.keras"
    path.write_bytes(BASE_PATH.read_bytes())
    phases = [{"unfreeze": 1, "epochs": 1, "learning_rate": 1e-3}]
    base = {"model": str(path), "image_size": 32}
    # The same file makes the same run wherever it is, and the tests share a storage.
    training = {"batch_size": 16, "seed": next(_SEEDS)}
    changes = {"base": base, "phases": phases, "training": training}
    return type(config).model_validate({**config.model_dump(), **changes}), path


def opened(config, dataset, **options):
    return open_run(open_store(config.storage), config, dataset, **options)


def test_a_run_is_held_to_the_network_that_it_began_with(digits, own_base, other_base):
    dataset, (config, path) = digits[1], own_base
    run = opened(config, dataset)
    assert pinned_base(run) is None
    train(run, dataset)
    # What is trained is no part of it, though the last block was.
    assert pinned_base(run) == build_model(config, dataset.classes).digest
    assert restore_model(run, dataset)[0].digest == pinned_base(run)

    path.write_bytes(other_base)
    assert opened(config, dataset).id != run.id
    with pytest.raises(RunConflictError, match=r"different: base\.model\.sha256\. .*including its files"):
        opened(config, dataset, run_id=run.id)
    again = {
        "restore": lambda: restore_model(run, dataset),
        "evaluate": lambda: evaluate_run(run, dataset),
        "resume": lambda: Training(run, dataset, shared=models_under(create_strategy())),
        "look": lambda: untrained_model(run, dataset),
    }
    for build in again.values():
        with pytest.raises(
            BaseChangedError, match=r"base\.model .* is not the network with which run .* began: .*[0-9a-f]{12}… now"
        ):
            build()
    assert run.newest_report() is None

    path.write_bytes(BASE_PATH.read_bytes())
    assert restore_model(run, dataset)[0].digest == pinned_base(run)


def test_a_file_that_is_replaced_after_a_run_was_named_begins_no_run(digits, own_base, other_base):
    dataset, (config, path) = digits[1], own_base
    run = opened(config, dataset)
    path.write_bytes(other_base)
    with pytest.raises(
        BaseChangedError, match=r"base\.model is .*base\.keras`, and this file is not the one with which"
    ):
        untrained_model(run, dataset)
    assert pinned_base(run) is None


def test_networks_of_shared_models_are_told_apart_by_their_files(digits, own_base, other_base):
    dataset, (config, path) = digits[1], own_base
    shared = models_under(create_strategy())
    first = Training(opened(config, dataset), dataset, shared=shared)
    path.write_bytes(other_base)
    second = Training(opened(config, dataset), dataset, shared=shared)
    assert first.model.digest != second.model.digest
    # Whose variables hold what somebody trained by now.
    second.next_epoch()
    path.write_bytes(BASE_PATH.read_bytes())
    third = Training(opened(config, dataset, run_id="third"), dataset, shared=shared)
    assert third.model.backbone is first.model.backbone
    assert pinned_base(third.run) == first.model.digest


def test_a_run_of_an_earlier_release_goes_on_as_before(digits):
    run = opened(*digits, run_id="earlier")
    Checkpoints(run).save(1, Progress(), weights=[], optimizer=[])
    hold_to_base(run, "0" * 64)
    assert pinned_base(run) is None
