"""`transfer submit` on a real head with dashboard and token: how jobs end, repeats, lost connections."""

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cutting_proxy import CuttingProxy
from tests.digits import digits_config, write_some_digits
from transfer.config.reference import render
from transfer.dataset.manifest import load_dataset
from transfer.demo import BASE_PATH
from transfer.storage import open_store
from transfer.working_tree import size_limit_bytes

ROOT = Path(__file__).parents[3]
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
COUNTING = "import pathlib, sys; pathlib.Path(sys.argv[2]).open('a').write('once ')"
FAILING = "import sys; sys.exit(4)"


@pytest.fixture
def tree(tmp_path):
    """A working tree with small jobs and a configuration."""
    root = tmp_path / "tree"
    (root / "jobs").mkdir(parents=True)
    for name, code in {"waiting": WAITING, "counting": COUNTING, "failing": FAILING}.items():
        (root / "jobs" / f"{name}.py").write_text(code)
    # A job's id is made of its content, and the head is there for all tests.
    base = {"model": "MobileNetV2"}
    config = digits_config(tmp_path, str(tmp_path / "storage"), base=base, name=f"n{secrets.token_hex(4)}")
    (root / "config.yaml").write_text(render(config))
    return root


def command(tree, job, *options):
    config = str(tree / "config.yaml")
    return [sys.executable, "-m", "transfer", "submit", job, config, "--working-dir", str(tree), "--json", *options]


def submit(head, tree, job, *options):
    return subprocess.run(command(tree, job, *options), env=head, cwd=ROOT, capture_output=True, text=True, check=False)


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


def test_a_job_of_the_project_runs_from_its_working_tree(head, tmp_path):
    base = {"model": str(BASE_PATH.relative_to(ROOT)), "image_size": 32}
    config = digits_config(write_some_digits(tmp_path / "images"), str(tmp_path / "storage"), base=base)
    (tmp_path / "config.yaml").write_text(render(config))
    line = [sys.executable, "-m", "transfer", "submit", "ingest", str(tmp_path / "config.yaml"), "--json"]
    line += ["--set", "dataset.validation=0.25"]
    finished = subprocess.run(line, env=head, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-5000:]
    answer = json.loads(finished.stdout)
    assert (answer["status"], answer["submitted"]) == ("SUCCEEDED", True)
    # The job's own answer is in its log, and its work in storage.
    assert "digits/00000001" in finished.stderr
    assert Path(head["RAY_AUTH_TOKEN_PATH"]).read_text() not in finished.stdout + finished.stderr
    dataset = load_dataset(open_store(config.storage), "digits")
    assert sum(dataset.rows(split) for split in ("train", "validation", "test")) == 240


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


def test_a_failed_job_ends_with_its_own_exit_code_and_a_repeat_is_the_next_attempt(head, tree):
    first, second = (submit(head, tree, "failing") for _ in range(2))
    assert (first.returncode, second.returncode) == (4, 4), first.stderr
    answers = [json.loads(each.stdout) for each in (first, second)]
    assert [answer["status"] for answer in answers] == ["FAILED", "FAILED"]
    assert [answer["job"][-2:] for answer in answers] == ["-1", "-2"]


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


def test_the_option_goes_before_the_environment_and_a_wrong_address_is_said(head, tree):
    refused = submit(head, tree, "failing", "--address", "http://127.0.0.1:1")
    assert refused.returncode == 9
    assert "No Ray cluster answers at http://127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_wrong_token_is_refused_and_neither_token_is_printed(head, tree):
    wrong = secrets.token_hex(32)
    environment = {name: value for name, value in head.items() if name != "RAY_AUTH_TOKEN_PATH"}
    refused = submit(environment | {"RAY_AUTH_TOKEN": wrong}, tree, "failing")
    assert refused.returncode == 9
    assert "did not accept the token" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert wrong not in refused.stdout + refused.stderr


def test_ray_takes_what_is_just_below_the_limit_that_is_checked(head, tree):
    (tree / "large.bin").write_bytes(bytes(size_limit_bytes() - 100_000))
    assert submit(head, tree, "failing").returncode == 4
    (tree / "large.bin").write_bytes(bytes(size_limit_bytes() + 1))
    refused = submit(head, tree, "failing")
    assert refused.returncode == 2
    assert "Largest: . (100.0 MiB)" in refused.stderr
