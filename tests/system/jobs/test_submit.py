"""`transfer submit` on a real head with dashboard and token: how jobs end. More is in tests/proof/jobs."""

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters import submit, write_tree
from tests.digits import digits_config, write_some_digits
from transfer.config.reference import render
from transfer.dataset.manifest import load_dataset
from transfer.storage import open_store


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path)


def test_a_job_runs_from_anywhere_as_it_is_installed_on_the_cluster(head, tmp_path):
    source = write_some_digits(tmp_path / "images")
    config = digits_config(source, str(tmp_path / "storage"), base={"model": "MobileNetV2"})
    (tmp_path / "config.yaml").write_text(render(config))
    line = [sys.executable, "-m", "transfer", "submit", "ingest", "config.yaml", "--json"]
    line += ["--set", "dataset.validation=0.25"]
    finished = subprocess.run(line, env=head, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-5000:]
    answer = json.loads(finished.stdout)
    assert (answer["status"], answer["submitted"]) == ("SUCCEEDED", True)
    # The job's own answer is in its log, and its work in storage.
    assert "digits/00000001" in finished.stderr
    assert Path(head["RAY_AUTH_TOKEN_PATH"]).read_text() not in finished.stdout + finished.stderr
    dataset = load_dataset(open_store(config.storage), "digits")
    assert sum(dataset.rows(split) for split in ("train", "validation", "test")) == 240


def test_a_failed_job_ends_with_its_own_exit_code_and_a_repeat_is_the_next_attempt(head, tree):
    first, second = (submit(head, tree, "failing") for _ in range(2))
    assert (first.returncode, second.returncode) == (4, 4), first.stderr
    answers = [json.loads(each.stdout) for each in (first, second)]
    assert [answer["status"] for answer in answers] == ["FAILED", "FAILED"]
    assert [answer["job"][-2:] for answer in answers] == ["-1", "-2"]


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
