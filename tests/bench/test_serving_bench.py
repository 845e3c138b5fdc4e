"""The bench of serving runs to its end, small."""

import json
import subprocess
import sys

import pytest


@pytest.mark.thorough
def test_the_bench_of_serving_compares_both_graphs_with_the_forward_pass():
    small = "--network MobileNetV2 --image-size 32 --rounds 2 --json"
    command = [sys.executable, "-m", "scripts.bench.serving", *small.split()]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["images_a_second"]["32 images"].keys() == {"forward", "merged", "plain"}
    assert result["forward / merged"].keys() == result["merged / plain"].keys() == {"32 images", "one image"}
