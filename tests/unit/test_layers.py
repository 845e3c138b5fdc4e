"""What a test of this layer may not do."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.forkserver import ForkServer

import pytest


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
        # One of its own: whoever ran before may have left the common one.
        lambda: ForkServer().ensure_running(),
        os.fork,
    ],
    ids=["subprocess", "spawn", "forkserver", "fork"],
)
def test_a_unit_test_that_starts_a_process_fails(start):
    with pytest.raises(pytest.fail.Exception, match=r"its place is below tests/system"):
        start()


def test_what_libraries_ask_the_machine_is_no_process_of_a_test():
    assert subprocess.run(["uname"], capture_output=True, check=True).stdout  # noqa: S607 - wherever it is
