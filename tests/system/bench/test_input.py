"""The bench of training input runs to its end, small."""

import pytest

from tests.system.bench.running import result_of


@pytest.mark.thorough
def test_each_arm_receives_the_images_once():
    result = result_of("input", "--images 400 --rounds 1 --latency-ms 5")
    arms = result["ms"]["5"]
    assert {"bare", "transfer", "transfer-plain"} <= arms.keys()
    assert arms["bare"]["received_bytes"][0] < 0.01 * result["size_bytes"]
    for arm in ("transfer", "transfer-plain"):
        assert 1 < arms[arm]["received_bytes"][0] / result["size_bytes"] < 1.1
