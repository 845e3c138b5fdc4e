"""Commands as processes: what they print where, and exit with. More are called in tests/unit/cli/test_main.py."""

import json
import re
import signal
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


def test_config_check_passes_a_good_one(config):
    done = transfer("config", "check", config, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["valid"] is True


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


def heed_ctrl_c():
    """What a shell starts in the background ignores Ctrl-C, and so does all that comes of it: these tests perhaps."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(*arguments, after):
    """What a command says that gets a Ctrl-C once it has said something."""
    command = [sys.executable, "-m", "transfer", *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed_ctrl_c, **pipes) as process:  # noqa: PLW1509 - it calls C only
        said = ""
        while after not in said:
            said += process.stderr.readline() or pytest.fail(said)
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on_from_there(config):
    train = ("train", config, "--set", "phases=[{unfreeze: 0, epochs: 100000, learning_rate: 1.0e-4}]")
    first = interrupted(*train, after="epoch 2/")
    place = re.search(r"\nInterrupted. Finished work is stored: the same command continues after (.*)\.\n$", first)[1]
    assert re.fullmatch(r"epoch \d+ of phase 0", place)
    assert f"Run {run_of(first)} goes on after {place}.\n" in interrupted(*train, after="phase 0")


def run_of(said):
    return re.search(r"^Run (\S+) on dataset", said, re.MULTILINE)[1]
