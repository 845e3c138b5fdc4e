"""Jobs of a working tree of the test's own, sent to a head by `transfer submit`."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

from tests.digits import digits_config
from transfer.config.reference import render

ROOT = Path(__file__).parents[1]
FAILING = "import sys; sys.exit(4)"


def write_tree(folder: Path, **jobs: str) -> Path:
    """A working tree with these jobs, by name, one that fails, and a configuration."""
    root = folder / "tree"
    (root / "jobs").mkdir(parents=True)
    for name, code in {**jobs, "failing": FAILING}.items():
        (root / "jobs" / f"{name}.py").write_text(code)
    # A job's id is made of its content, and the head is there for all tests.
    base = {"model": "MobileNetV2"}
    config = digits_config(folder, str(folder / "storage"), base=base, name=f"n{secrets.token_hex(4)}")
    (root / "config.yaml").write_text(render(config))
    return root


def command(tree: Path, job: str, *options: str) -> list[str]:
    """The command line that submits a job of the tree."""
    config = str(tree / "config.yaml")
    return [sys.executable, "-m", "transfer", "submit", job, config, "--working-dir", str(tree), "--json", *options]


def submit(head: dict[str, str], tree: Path, job: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit it and wait for its end; `head` is the environment that reaches the head."""
    return subprocess.run(command(tree, job, *options), env=head, cwd=ROOT, capture_output=True, text=True, check=False)
