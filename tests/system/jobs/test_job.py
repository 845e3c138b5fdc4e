"""The train job on a real cluster: a head with dashboard and token, `ray job submit`, two workers, S3 storage."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.digits import digits_config, write_some_digits
from transfer.config.reference import render
from transfer.registry.versions import download_version, load_version
from transfer.storage import open_store

ROOT = Path(__file__).parents[3]
RAY = Path(sys.executable).with_name("ray")


# `make test-s3` has it, too.
@pytest.mark.thorough
@pytest.mark.s3
def test_the_train_job_publishes_a_model_from_two_workers(head, s3_storage, tmp_path):
    source = write_some_digits(tmp_path / "images")
    config = digits_config(source, s3_storage.model_dump(), workers={"count": 2})
    path = tmp_path / "config.yaml"
    path.write_text(render(config))
    submit = [RAY, "job", "submit", "--working-dir", str(ROOT), "--runtime-env-json", json.dumps(runtime_environment())]
    submit += ["--", sys.executable, "-m", "jobs.train", str(path), "--json"]
    finished = subprocess.run(submit, env=head, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]

    version = load_version(open_store(s3_storage), "digits")
    folder = download_version(open_store(s3_storage), version, tmp_path / "model")
    assert (folder / "saved_model.pb").exists()
    assert version.provenance.metrics.accuracy > 0.3
    answer = next(line for line in finished.stdout.splitlines() if line.startswith('{"run"'))
    assert json.loads(answer)["version"] == version.number
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in finished.stdout


def runtime_environment():
    # What `.gitignore` names is not shipped with the working tree by Ray itself.
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {"excludes": [".git", ".venv"], "env_vars": variables}


def test_a_typo_in_the_configuration_fails_the_job_without_a_traceback(head, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("{name: n, storage: x, dataset: {source: digits}, base: {model: M}, phasess: []}")
    submit = [RAY, "job", "submit", "--working-dir", str(ROOT), "--runtime-env-json", json.dumps(runtime_environment())]
    submit += ["--", sys.executable, "-m", "jobs.train", str(path)]
    finished = subprocess.run(submit, env=head, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "did you mean `phases`?" in finished.stdout
    assert "Traceback" not in finished.stdout


def test_without_the_token_the_cluster_is_closed(head, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    listing = [RAY, "job", "list"]
    refused = subprocess.run(
        listing, env={**head, "RAY_AUTH_TOKEN_PATH": str(wrong)}, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
