"""How many workers may train together, and what the batch has to do with it."""

import pytest

from transfer.config import parse_config
from transfer.errors import ConfigError


def configured(batch_size, sweep=None, **workers):
    return parse_config(
        {
            "name": "pets",
            "storage": "storage",
            "dataset": {"source": "images"},
            "base": {"model": "MobileNetV2"},
            "training": {"batch_size": batch_size},
            "workers": workers,
            "sweep": sweep,
        }
    ).workers


def test_without_a_fewest_number_there_is_one():
    assert list(configured(32, count=4).counts) == [4]
    assert list(configured(32).counts) == [0]


def test_any_number_of_workers_divides_the_batch():
    assert list(configured(36, count=4, min_count=2, gpus_per_worker=3).counts) == [2, 3, 4]
    with pytest.raises(ConfigError, match=r"any number of workers from 2 to 4 \(.*workers.count\): .* of 12"):
        configured(32, count=4, min_count=2)
    with pytest.raises(ConfigError, match=r"number of replicas from 6 to 12 \(.*x workers.gpus_per_worker\): .* of 36"):
        configured(24, count=4, min_count=2, gpus_per_worker=3)


def test_replicas_are_only_spoken_of_where_there_are_gpus():
    with pytest.raises(ConfigError, match=r"divisible by the 3 workers \(workers.count\)"):
        configured(32, count=3)
    with pytest.raises(ConfigError, match=r"divisible by the 6 replicas \(workers.count x workers.gpus_per_worker\)"):
        configured(32, count=3, gpus_per_worker=2)


def test_fewer_workers_than_the_fewest_are_refused():
    with pytest.raises(ConfigError, match=r"workers.min_count is 3 and workers.count 2"):
        configured(32, count=2, min_count=3)


def test_trials_share_a_gpu_only_where_each_has_one_worker_and_one_gpu():
    sweep = {"space": {"head.dropout": [0.0, 0.1]}, "gpus_per_trial": 0.5}
    configured(32, sweep=sweep, count=1, gpus_per_worker=1)
    with pytest.raises(ConfigError, match=r"workers.count is 2 with gpus_per_worker 1; both must be 1"):
        configured(32, sweep=sweep, count=2, gpus_per_worker=1)
