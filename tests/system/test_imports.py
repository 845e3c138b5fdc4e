"""What is loaded by whom: TensorFlow takes seconds, Ray one, and neither may be loaded where it is not needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TENSORFLOW = {"tensorflow", "keras", "tf_keras"}
OPEN_A_FOLDER = "from transfer.config import StorageConfig; open_store(StorageConfig(uri='/data'))"


def modules_loaded_by(code):
    """Names of the modules that a process has when it has run the code."""
    program = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    command = [sys.executable, "-c", program]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


# Some work, and what it must not load. All that must not load the same shares a process.
LOOKING_AFTER_WHAT_IS_STORED = """
from transfer.dataset import decisions
from transfer.maintenance import features, old_runs, runs, verify
from transfer.nights import data_checks
from transfer.registry import describe, retention
from transfer.tuning import live_table, page, space
"""
DRIVING_WORKERS = """
import ray.job_submission
from transfer import jobs
from transfer.cli import main
from transfer.evaluation import evaluate, page
from transfer.features import ray_extract
from transfer.registry import compare_versions, serving_answers
from transfer.submission import submit
from transfer.training import distributed
from transfer.tuning import driver, plan, trainable, trial_actor
"""
NOT_NEEDED = {
    "opening a folder": (f"from transfer.storage import open_store; {OPEN_A_FOLDER}", {*TENSORFLOW, "boto3"}),
    "checking images": ("import transfer.dataset.check", {*TENSORFLOW, "PIL"}),
    "logging to MLflow": ("import transfer.tuning.mlflow", {*TENSORFLOW, "ray", "mlflow"}),
    "searching": ("import transfer.tuning.search", {*TENSORFLOW, "optuna"}),
    "looking after what is stored": (LOOKING_AFTER_WHAT_IS_STORED, {*TENSORFLOW, "ray", "optuna"}),
    "driving workers": (DRIVING_WORKERS, TENSORFLOW),
}


@pytest.mark.parametrize("work", NOT_NEEDED)
def test_nothing_is_loaded_that_is_not_needed(work):
    code, unwanted = NOT_NEEDED[work]
    assert not modules_loaded_by(code) & unwanted


HEAVY = {"tensorflow", "keras", "ray", "pyarrow", "numpy", "boto3", "sklearn", "matplotlib"}
HELP_OF_ALL = """
import contextlib, io
import typer
from transfer.cli.main import app

def ask(command, *words):
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        app([*words, "--help"])
    assert said.getvalue().startswith("Usage: "), words
    for name, inner in getattr(command, "commands", {}).items():
        ask(inner, *words, name)

ask(typer.main.get_command(app))
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    app(["--version"])
"""


def test_neither_the_help_of_a_command_nor_the_versions_load_a_heavy_package():
    assert not modules_loaded_by(HELP_OF_ALL) & HEAVY
