"""`transfer submit` on a real head: jobs that are stopped, repeated, followed by two, cut off, large."""

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clusters import ROOT, command, submit, write_tree
from tests.proxies import CuttingProxy
from transfer.runtime.ray_private.cluster import package_limit_bytes

COUNTING = "import pathlib, sys; pathlib.Path(sys.argv[2]).open('a').write('once ')"
RAY = Path(sys.executable).with_name("ray")
# Waits for a file, with a line of log each time; there is an end to it where nobody makes one.
WAITING = """
import pathlib, sys, time
print("begins", flush=True)
for number in range(600):
    if pathlib.Path(sys.argv[2]).exists():
        break
    print(f"line {number}", flush=True)
    time.sleep(0.1)
print("ends", flush=True)
"""


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path, waiting=WAITING, counting=COUNTING)


class Following:
    """The command in a process that goes on; what it says on stderr can be read meanwhile."""

    def __init__(self, head, log, tree, job, *options):
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command(tree, job, *options), env=head, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    @property
    def log(self):
        return self._log.read_text()

    def wait_for(self, text):
        while text not in self.log:
            assert self._process.poll() is None, self.log
            time.sleep(0.1)

    def end(self):
        """The exit code and the answer."""
        output, _ = self._process.communicate(timeout=120)
        return self._process.returncode, json.loads(output)


@pytest.fixture
def follow(head, tmp_path):
    """Starts the command in the background."""
    started = []

    def begin(*arguments):
        started.append(Following(head, tmp_path / f"log-{len(started)}", *arguments))
        return started[-1]

    return begin


def test_a_stopped_job_is_told_from_one_that_failed_or_succeeded(head, tree, tmp_path, follow):
    begun = submit(head, tree, "waiting", "--no-wait", "--", str(tmp_path / "never"))
    answer = json.loads(begun.stdout)
    assert begun.returncode == 0
    assert answer["status"] in {"PENDING", "RUNNING"}
    following = follow(tree, "waiting", "--", str(tmp_path / "never"))
    following.wait_for("line 0")
    subprocess.run([RAY, "job", "stop", answer["job"]], env=head, check=True, capture_output=True)
    code, ended = following.end()
    assert (code, ended["exit_code"], ended["status"]) == (20, 20, "STOPPED")
    assert (ended["job"], ended["submitted"]) == (answer["job"], False)


def test_who_comes_second_follows_the_job_that_runs(tree, tmp_path, follow):
    both = [follow(tree, "waiting", "--", str(tmp_path / "go")) for _ in range(2)]
    for each in both:
        each.wait_for("begins")
    (tmp_path / "go").touch()
    (first_code, first), (second_code, second) = (each.end() for each in both)
    assert (first_code, second_code) == (0, 0)
    assert first["job"] == second["job"]
    assert sorted([first["submitted"], second["submitted"]]) == [False, True]
    assert [each.log.count("begins") for each in both] == [1, 1]


def test_a_dropped_connection_is_taken_up_again_and_no_line_comes_twice(head, tree, tmp_path, follow):
    proxy = CuttingProxy(urlsplit(head["RAY_API_SERVER_ADDRESS"]).port)
    address = f"http://127.0.0.1:{proxy.port}"
    following = follow(tree, "waiting", "--address", address, "--", str(tmp_path / "go"))
    following.wait_for("line 3")
    assert proxy.cut()
    (tmp_path / "go").touch()
    # Turned away at least once, it comes again.
    while not proxy.turned_away:
        time.sleep(0.1)
    proxy.away = False
    code, answer = following.end()
    proxy.close()
    assert (code, answer["status"]) == (0, "SUCCEEDED")
    lines = [line for line in following.log.splitlines() if line.startswith(("begins", "line ", "ends"))]
    assert lines == ["begins", *(f"line {number}" for number in range(len(lines) - 2)), "ends"]


def test_ray_takes_what_is_just_below_the_limit_that_is_checked(head, tree):
    (tree / "large.bin").write_bytes(bytes(package_limit_bytes() - 100_000))
    assert submit(head, tree, "failing").returncode == 4
    (tree / "large.bin").write_bytes(bytes(package_limit_bytes() + 1))
    refused = submit(head, tree, "failing")
    assert refused.returncode == 2
    assert "Largest: . (100.0 MiB)" in refused.stderr


def test_a_repeat_of_a_job_that_succeeded_says_so_and_runs_nothing(head, tree, tmp_path):
    counted = tmp_path / "counted"
    first, second = (submit(head, tree, "counting", "--", str(counted)) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    answers = [json.loads(each.stdout) for each in (first, second)]
    assert answers[0]["job"] == answers[1]["job"]
    assert [answer["submitted"] for answer in answers] == [True, False]
    assert counted.read_text() == "once "

    # Another night is another job, and so is other code.
    submit(head, tree, "counting", "--id", "2026-11-21", "--", str(counted))
    (tree / "jobs" / "counting.py").write_text(COUNTING + " # changed")
    submit(head, tree, "counting", "--", str(counted))
    assert counted.read_text() == "once once once "
