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


NOT_NEEDED = {
    "opening a folder": (
        f"from transfer.storage import open_store; {OPEN_A_FOLDER}",
        {*TENSORFLOW, "boto3"},
    ),
    "checking images": ("import transfer.dataset.check", {*TENSORFLOW, "PIL"}),
    "looking after what is kept": (
        "import transfer.activations.cache, transfer.activations.verify",
        {*TENSORFLOW, "ray"},
    ),
    "managing the registry": (
        "import transfer.registry.retention, transfer.registry.pins, transfer.registry.describe",
        {*TENSORFLOW, "ray"},
    ),
    "a night's look at new images": ("import transfer.nightly.look", {*TENSORFLOW, "ray"}),
    "pinning a base": ("import transfer.training.pinned_base", TENSORFLOW),
    "knowing the trials": ("import transfer.tuning.space", {*TENSORFLOW, "ray", "optuna"}),
    "knowing what fits together": ("import transfer.tuning.packs", TENSORFLOW),
    "searching": ("import transfer.tuning.search", {*TENSORFLOW, "optuna"}),
    "showing a sweep": ("import transfer.tuning.table, transfer.tuning.page", {*TENSORFLOW, "ray"}),
    "logging to MLflow": ("import transfer.tuning.mlflow", {*TENSORFLOW, "ray", "mlflow"}),
    "submitting": ("import transfer.submit, ray.job_submission", TENSORFLOW),
    "driving training": ("import transfer.pipeline, transfer.training.ray_workers, transfer.cli", TENSORFLOW),
    "driving extraction": ("import transfer.activations.ray_extract", TENSORFLOW),
    "driving a sweep": (
        "import transfer.tuning.driver, transfer.tuning.client, transfer.tuning.host, transfer.tuning.page",
        TENSORFLOW,
    ),
}


@pytest.mark.parametrize("work", NOT_NEEDED)
def test_nothing_is_loaded_that_is_not_needed(work):
    code, unwanted = NOT_NEEDED[work]
    assert not modules_loaded_by(code) & unwanted


HEAVY = {"tensorflow", "keras", "ray", "pyarrow", "numpy", "boto3", "sklearn", "matplotlib"}
HELP_OF_ALL = """
import contextlib, io
import typer
from transfer.cli import app

def ask(command, *words):
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        app([*words, "--help"])
    assert said.getvalue().startswith("Usage: "), words
    for name, inner in getattr(command, "commands", {}).items():
        ask(inner, *words, name)

ask(typer.main.get_command(app))
"""


def test_the_help_of_no_command_loads_a_heavy_package():
    assert not modules_loaded_by(HELP_OF_ALL) & HEAVY
