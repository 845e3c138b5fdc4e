"""Benches from end to end, in processes of their own."""

import json
import subprocess
import sys


def result_of(bench, options):
    """What `python -m scripts.bench.BENCH OPTIONS --json` prints. It must succeed."""
    command = [sys.executable, "-m", f"scripts.bench.{bench}", *options.split(), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])
