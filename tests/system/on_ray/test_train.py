"""Training on real Ray workers: the same result as in one process. Their kills are in tests/proof."""

import pickle

import pytest
import ray

from tests.attention import on_attention
from tests.digits import digits_config, from_scratch, ingest_some_digits
from tests.trained import largest_difference, trained_in_one_process
from transfer.errors import TrainingError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.distributed import _worker_main, ray_storage_path, train_on_workers
from transfer.training.run import open_run

WORKERS = {"count": 2, "max_failures": 2, "collectives": "ring"}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def new_run(digits, run_id, **changes):
    source, dataset = digits
    config = digits_config(source, str(source.parent / "storage"), **changes)
    return open_run(open_store(config.storage), config, dataset, run_id=run_id)


@pytest.fixture(scope="module")
def in_one_process(digits):
    """The end of the run trained from pixels."""
    return trained_in_one_process(new_run(digits, "one-process", features="never"))


def test_two_ray_workers_end_with_the_weights_of_one_process(ray_cluster, digits, in_one_process):
    """What they train on is computed on the cluster first: nothing is kept yet."""
    run = new_run(digits, "two-workers", workers=WORKERS, features={"cache": "always", "engine": "tensorflow"})
    seen = []
    train_on_workers(run, on_epoch=seen.append)
    assert [choice["cached"] for choice in run.inputs.read(1)["phases"]] == [True, True]
    final = Checkpoints(run).complete()
    assert largest_difference(final.weights, in_one_process.weights) < TOLERANCE
    assert tuple(seen) == final.progress.history
    for here, there in zip(in_one_process.progress.history, final.progress.history, strict=True):
        assert there.accuracy == here.accuracy
        assert there.validation_accuracy == here.validation_accuracy


@pytest.mark.thorough
def test_two_ray_workers_train_the_adapters_that_one_process_trains(ray_cluster, digits):
    """Also those of a second phase, on kernels that each worker merged by itself."""
    source, dataset = digits
    adapted = {"unfreeze": 2, "epochs": 1, "learning_rate": 1e-3, "lora": {"rank": 2, "targets": "all"}}
    ends = []
    for name, workers in (("one", {}), ("two", WORKERS)):
        config = digits_config(source, str(source.parent / "storage"), workers=workers)
        config = on_attention(config, source.parent, [adapted, adapted])
        run = open_run(open_store(config.storage), config, dataset, run_id=f"adapters-{name}")
        if workers:
            train_on_workers(run)
            ends.append(Checkpoints(run).complete())
        else:
            ends.append(trained_in_one_process(run))
    assert largest_difference(ends[0].weights, ends[1].weights) < TOLERANCE


@pytest.mark.thorough
def test_two_ray_workers_train_batch_norms_of_random_weights_as_one_process_does(ray_cluster, digits, tmp_path):
    """Their first block is frozen: statistics and features are computed on the cluster, and found here."""
    changes = {
        "base": from_scratch(tmp_path / "network.keras"),
        "phases": [{"unfreeze": 2, "epochs": 2, "learning_rate": 1e-3}],
        "features": {"cache": "always", "engine": "tensorflow"},
    }
    run = new_run(digits, "two-workers-from-scratch", workers=WORKERS, **changes)
    train_on_workers(run)
    expected = trained_in_one_process(new_run(digits, "one-process-from-scratch", **changes))
    assert largest_difference(Checkpoints(run).complete().weights, expected.weights) < TOLERANCE


def test_errors_of_tensorflow_are_looked_at_without_it(digits, monkeypatch):
    import tensorflow as tf

    def fail(_):
        raise tf.errors.UnavailableError(None, None, "it is gone")

    monkeypatch.setattr("transfer.training.step.create_strategy", fail)
    settings = {"config": new_run(digits, "failing").config.model_dump(mode="json")}
    with pytest.raises(RuntimeError, match="UnavailableError: it is gone") as raised:
        _worker_main(settings)
    assert b"tensorflow" not in pickle.dumps(raised.value)


@pytest.mark.parametrize("fewest", [None, 3])
def test_a_cluster_that_is_too_small_is_named_in_time(ray_cluster, digits, fewest):
    """There is room for two workers."""
    workers = {"count": 4, "min_count": fewest, "cpus_per_worker": ray.cluster_resources()["CPU"] / 2}
    workers["start_timeout_s"] = 1.0
    run = new_run(digits, f"too-large-{fewest}", workers=workers, training={"batch_size": 12}, features="never")
    with pytest.raises(TrainingError, match=f"workers.start_timeout_s, 1 s. It needs {fewest or 4} workers"):
        train_on_workers(run)


def test_ray_keeps_its_state_beside_ours_without_credentials(digits):
    from transfer.config import StorageConfig

    storage = StorageConfig(uri="s3://bucket/prefix", endpoint_url="http://127.0.0.1:9000", region="eu-west-1")
    assert (
        ray_storage_path(storage)
        == "s3://bucket/prefix/ray?scheme=http&endpoint_override=127.0.0.1%3A9000&region=eu-west-1"
    )
