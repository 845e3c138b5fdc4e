"""Commands as processes: what they print where, and exit with. More of them are called in tests/unit/test_cli.py."""

import json
import subprocess
import sys

import pytest

from tests.digits import digits_config, write_some_digits
from transfer.config.reference import render


def transfer(*arguments, **options):
    command = [sys.executable, "-m", "transfer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def config(tmp_path):
    source = write_some_digits(tmp_path / "images")
    path = tmp_path / "config.yaml"
    path.write_text(render(digits_config(source, str(tmp_path / "storage"))))
    return path


def test_a_mistake_ends_with_a_sentence_and_a_code_and_no_traceback(config):
    config.write_text(config.read_text().replace("phases:", "phasess:"))
    done = transfer("train", config)
    assert done.returncode == 2
    assert "did you mean `phases`?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_config_check_passes_a_good_one_and_says_what_cannot_be_learned_on_a_random_base(config):
    done = transfer(
        "config", "check", config, "--json", "--set", "base.model=MobileNetV2", "--set", "base.weights=none"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["valid"] is True
    assert "hardly anything can be learned on this base" in done.stderr


def test_an_error_that_is_found_with_tensorflow_loaded_has_its_exit_code_too(config):
    done = transfer("config", "check", config, "--set", "phases.1.unfreeze=99")
    assert done.returncode == 5
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_json_is_one_object_on_stdout_and_the_rest_goes_to_stderr(config):
    done = transfer("ingest", config, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["dataset"] == "digits/00000001"
    assert sum(answer["images"].values()) == 240
    assert "images/s" in done.stderr
