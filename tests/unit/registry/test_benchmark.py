"""On a machine that is at work for others nothing is measured, and nothing is told."""

import itertools

from tests.published import write_config_of_five
from transfer.registry import benchmark
from transfer.runtime.machine import CpuTime


def test_a_busy_machine_is_refused_before_anything_starts(tmp_path, folder_storage, transfer, monkeypatch):
    config = write_config_of_five(tmp_path, folder_storage)
    # Half of the CPUs are at work for others.
    seconds = itertools.count()
    cpus = benchmark.os.cpu_count() or 1
    monkeypatch.setattr(benchmark, "cpu_time", lambda: CpuTime(at := float(next(seconds)), at * cpus / 2))
    monkeypatch.setattr(benchmark, "LOOK_S", 0.0)
    refused = transfer("benchmark", config)
    assert (refused.returncode, refused.stdout) == (16, "")
    assert "of this machine's CPUs are at work for other programs; at most 10.0 % may be" in refused.stderr
    assert "by --max-load" in refused.stderr
