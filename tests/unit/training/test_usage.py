import time

import pytest

from transfer.catalog.run import EpochRow, Usage
from transfer.config import CostConfig
from transfer.training.usage import Meter, spent, usage_of


def row(usage, *, seconds=1800.0):
    return EpochRow(phase=0, epoch=0, loss=1.0, accuracy=0.5, learning_rate=0.1, seconds=seconds, usage=usage)


def test_a_process_counts_its_own_work():
    meter, started = Meter(), time.process_time()
    while time.process_time() - started < 0.02:
        pass
    usage = usage_of(meter.read())
    assert usage.cpu_s >= 0.02
    assert usage.memory_bytes > 1024**2
    assert (usage.gpu_s, usage.workers) == (0.0, 1)


def test_epochs_are_reckoned_together_by_the_watts_and_the_price_of_a_worker():
    rows = [row(Usage(cpu_s=3000.0, gpu_s=3600.0, memory_bytes=memory, workers=2)) for memory in (100, 300)]
    found = spent(rows, CostConfig(per_hour=1.5, watts_per_cpu=12.0, watts_per_gpu=300.0))
    assert (found.cpu_s, found.gpu_s, found.memory_bytes) == (6000.0, 7200.0, 300)
    # Two workers for half an hour, twice.
    assert found.money == pytest.approx(3.0)
    assert found.kwh == pytest.approx((6000 * 12 + 7200 * 300) / 3.6e6)
    assert found.text == (
        "1 h 40 min of CPUs, 2 h 0 min of GPUs, 300 bytes of memory at most, about 0.62 kWh by the watts in `cost`; "
        "3.00 at `cost.per_hour`"
    )
    assert spent(rows, CostConfig()).money is None


def test_what_is_not_known_of_each_epoch_is_not_told():
    assert spent([], CostConfig()) is None
    assert spent([row(Usage(cpu_s=1.0, gpu_s=0.0, memory_bytes=1, workers=1)), row(None)], CostConfig()) is None
