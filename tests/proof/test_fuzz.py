"""Configurations, documents and images that a coverage-guided fuzzer makes up: taken, or refused with a sentence."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.proof.amount import trials
from tests.proof.figures import note

ROOT = Path(__file__).parents[2]
TARGETS = ("config", "document", "image")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has wheels for Linux only"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def seconds():
    return trials(5, 120)


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory, seconds):
    """One for each target, all at work at the same time; and what each says."""
    folder = tmp_path_factory.mktemp("fuzz")
    started = {}
    for target in TARGETS:
        with (folder / f"{target}.log").open("w") as log:
            command = [sys.executable, "-m", "tests.proof.fuzzing", target, str(folder / target), str(seconds)]
            # By way of a shell: Linux gives a process the peak of memory of the one that started it, here gigabytes.
            started[target] = subprocess.Popen(
                ["/bin/sh", "-c", '"$@"; exit "$?"', "sh", *command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
                start_new_session=True,
            )
    yield {target: (process, folder / f"{target}.log") for target, process in started.items()}
    for process in started.values():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_is_read_is_taken_or_refused_with_a_sentence_in_bounded_time_and_memory(fuzzers, seconds, target):
    process, log = fuzzers[target]
    exit_code = process.wait()
    said = log.read_text(errors="replace")
    executions = re.search(r"number_of_executed_units: (\d+)", said)
    assert exit_code == 0, said[-5000:]
    assert int(executions[1]) > 100
    memory = re.search(r"peak_rss_mb: +(\d+)", said)
    note(
        f"fuzzed: {target}", executions=int(executions[1]), failures=0, seconds=seconds, peak_memory_mib=int(memory[1])
    )
