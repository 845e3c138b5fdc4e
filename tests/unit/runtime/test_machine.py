import shutil
import time

from transfer.runtime.machine import CpuTime, EnergyCounters, cpu_time, memory_bytes


def test_cpus_at_work_for_others_are_told_from_ones_own():
    before, after = CpuTime(10.0, 100.0), CpuTime(20.0, 115.0)
    assert after.share_of_others(before, own_s=5.0, cpus=2) == 0.5
    # Ticks round: a process may seem to have taken more than all.
    assert after.share_of_others(before, own_s=15.5, cpus=2) == 0.0


def test_ones_own_work_is_counted():
    before, started = cpu_time(), time.process_time()
    while time.process_time() - started < 0.1:
        pass
    assert cpu_time().busy - before.busy >= 0.05


def test_the_peak_of_memory_is_not_below_what_is_used_now():
    assert memory_bytes() >= memory_bytes("VmRSS") > 1024**2


def test_counters_of_energy_are_read_and_begin_again_at_0(tmp_path):
    for name, energy in (("intel-rapl:0", 900), ("intel-rapl:0:0", 5), ("intel-rapl:1", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    # The platform's counter has the packages in it.
    shutil.copytree(tmp_path / "intel-rapl:1", tmp_path / "intel-rapl:2")
    (tmp_path / "intel-rapl:2" / "name").write_text("psys\n")
    counters = EnergyCounters(tmp_path)
    assert counters.names[:1] == ["RAPL"]
    before = counters.read()
    # A core's counter is part of its package's.
    assert before[:2] == [900, 100]
    assert len(before) == len(EnergyCounters(tmp_path / "none").read()) + 2
    after = [300, 150, *before[2:]]
    assert counters.joules(before, after) == (400 + 50) / 1e6
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert "RAPL" not in EnergyCounters(tmp_path).names
