"""CPU-seconds are those of everything that comes of a command, whichever way they are counted."""

import json
import sys
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from scripts.bench import cpu_time
from scripts.bench.cpu_time import ControlGroup, Counter, MarkedProcesses, run_counted

# Works, has a child work, and leaves a daemon behind that goes on to work; each tells what it used.
FAMILY = """
import os, subprocess, sys, time

def work():
    while time.process_time() < 0.5:
        pass

work()
role = sys.argv[1]
if role == "parent":
    subprocess.run([sys.executable, __file__, "child"], check=True)
if role == "child":
    subprocess.Popen([sys.executable, __file__, "daemon"], start_new_session=True)
if role == "daemon":
    time.sleep(0.5)  # By now it has no parent of its own any more.
    while time.process_time() < 1.0:
        pass
"""
FAMILY_CPU_S = 0.5 + 0.5 + 1.0


def control_group() -> Counter:
    try:
        return ControlGroup()
    except (OSError, CalledProcessError) as error:
        pytest.skip(f"no control group can be made here: {error}")


@pytest.mark.parametrize("make", [control_group, MarkedProcesses])
def test_children_and_daemons_are_counted_until_the_last_of_them_has_ended(tmp_path, make):
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    _, usage = run_counted([sys.executable, str(script), "parent"], make())
    used = usage.between(usage.started, usage.ended)
    # Looking every tenth of a second may lose the last of them of each of the three; starting Python takes some.
    assert FAMILY_CPU_S - 0.35 < used < FAMILY_CPU_S + 1.0
    middle = (usage.started + usage.ended) / 2
    assert usage.between(usage.started, middle) + usage.between(middle, usage.ended) == pytest.approx(used)


@pytest.mark.parametrize("make", [control_group, MarkedProcesses])
def test_what_others_do_is_not_counted(make):
    for _ in range(1_000_000):
        pass
    _, usage = run_counted([sys.executable, "-c", "import time; time.sleep(0.3)"], make())
    assert usage.between(usage.started, usage.ended) < 0.3


@pytest.mark.parametrize("make", [control_group, MarkedProcesses])
def test_what_a_command_leaves_behind_is_ended_when_the_bench_gives_up(monkeypatch, make):
    monkeypatch.setattr(cpu_time, "LEFTOVERS_MAY_TAKE_S", 0.5)
    leave = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    with pytest.raises(SystemExit, match="left processes behind") as found:
        run_counted([sys.executable, "-c", leave], make())
    (left,) = json.loads(str(found.value).rpartition(": ")[2])
    assert not Path(f"/proc/{left}").exists() or "(sleep) Z" in Path(f"/proc/{left}/stat").read_text()


def test_a_command_that_fails_ends_the_bench_with_its_errors():
    with pytest.raises(SystemExit, match="no such thing"):
        run_counted([sys.executable, "-c", "raise ValueError('no such thing')"], MarkedProcesses())
