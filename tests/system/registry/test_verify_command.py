"""The command `transfer registry verify`, as a process that starts others."""

import json
import subprocess
import sys

import pytest

from tests.digits import digits_config
from tests.published import publish_some
from transfer.config.reference import render
from transfer.storage import open_store

MODEL = "digits"


@pytest.fixture
def config(tmp_path, folder_storage):
    publish_some(open_store(folder_storage), 5, promoted=[1, 2, 3, 4, 5], model=MODEL)
    path = tmp_path / "config.yaml"
    path.write_text(render(digits_config(tmp_path / "images", folder_storage.uri)))
    return path


def registry(*arguments):
    command = [sys.executable, "-m", "transfer", "registry", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_verifying_names_the_versions_that_cannot_be_served_and_fails(config):
    done = registry("verify", config, "2", "--json")
    assert done.returncode == 7, done.stderr
    (row,) = json.loads(done.stdout)["versions"]
    assert (row["version"], row["run"]) == (2, "run-1")
    assert "does not answer, asked by tf.saved_model.load" in row["problem"]
    assert "cannot be served as they are: 2." in done.stderr
    assert "Traceback" not in done.stderr
