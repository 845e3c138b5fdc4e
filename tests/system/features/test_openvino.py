"""OpenVINO in a process whose home is empty."""

import os
import subprocess
import sys


def test_openvino_reports_nothing_to_anybody(tmp_path):
    program = (
        "import sys, tests.unit.features.test_forward as t;"
        "forward = t.build_forward(t.cuts(t.backbone_of(options={'alpha': 0.35}), 0), engine='openvino');"
        "list(forward.map([t.pixels(3)])); import openvino;"
        "sys.exit('openvino_telemetry' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "CI": "", "KERAS_HOME": str(tmp_path / "keras")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert not (tmp_path / "intel").exists()  # where it notes its identity of the user
