"""The command `transfer registry verify`, as a process that starts others."""

import json
import subprocess
import sys

import pytest

from tests.published import write_config_of_five

MODEL = "digits"


@pytest.fixture
def config(tmp_path, folder_storage):
    return write_config_of_five(tmp_path, folder_storage)


def registry(*arguments):
    command = [sys.executable, "-m", "transfer", "registry", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_verifying_names_the_versions_that_cannot_be_served_and_fails(config):
    done = registry("verify", config, "2", "--json")
    assert done.returncode == 7, done.stderr
    (row,) = json.loads(done.stdout)["versions"]
    assert (row["version"], row["run"]) == (2, "run-1")
    assert "does not answer, asked by tf.saved_model.load" in row["problem"]
    assert "are damaged or cannot be loaded: 2." in done.stderr
    assert "Traceback" not in done.stderr
