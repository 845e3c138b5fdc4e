"""The demo's base, trained anew."""

import hashlib
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.thorough
def test_pretraining_twice_writes_the_same_file(tmp_path):
    # In processes of their own: the script switches all of TensorFlow to deterministic operations.
    digests = []
    for name in ("first.keras", "second.keras"):
        small = ["--output", str(tmp_path / name), "--images", "300", "--epochs", "1"]
        subprocess.run([sys.executable, "-m", "scripts.pretrain_demo_base", *small], cwd=ROOT, check=True)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    base = keras.saving.load_model(tmp_path / "first.keras", safe_mode=True)
    assert base.output_shape == (None, 4, 4, 128)
