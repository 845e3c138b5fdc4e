"""Random weights, drawn by another process with other settings."""

import json
import os
import subprocess
import sys

import pytest

from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig
from transfer.runtime.numerics import OWN_ENVIRONMENT, OWN_KERAS

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ALPHA = {"alpha": 0.35}


def config(**changes):
    return BaseNetworkConfig(
        **{"model": "MobileNetV2", "weights": "none", "image_size": 96, "options": ALPHA} | changes
    )


@pytest.mark.thorough
def test_random_weights_are_the_same_in_every_process_and_leave_the_generator_alone(tmp_path):
    import random

    program = (
        "from transfer.backbone.load import load_backbone; from transfer.config import BaseNetworkConfig as C;"
        "print(load_backbone(C(model='MobileNetV2', weights='none', image_size=96, options={'alpha': 0.35})).digest())"
    )
    # Whatever settings Keras and TensorFlow find there.
    settings = {"floatx": "float16", "epsilon": 0.5, "image_data_format": "channels_first", "backend": "torch"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if name not in OWN_ENVIRONMENT}
    environment |= {"KERAS_HOME": str(tmp_path), "TF_XLA_FLAGS": "--tf_xla_auto_jit=2", "KERAS_MAX_EPOCHS": "few"}
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    assert load_backbone(config()).digest() == other.stdout.split()[-1]
    assert random.random() == expected
    said = [line for line in other.stderr.splitlines() if "is used, so that results do not depend on it" in line]
    for line, setting in zip(said, ["backend", "KERAS_MAX_EPOCHS", "TF_XLA_FLAGS", *OWN_KERAS], strict=True):
        assert setting in line
