"""The bench of predictions runs to its end, small."""

import pytest

from tests.system.bench.running import result_of


@pytest.mark.thorough
def test_the_bench_of_predictions_compares_the_job_with_the_bare_pass_and_workers_with_one():
    result = result_of("predict", "--network MobileNetV2 --image-size 32 --images 40 --rounds 1")
    assert result["images_a_second"].keys() == {"bare", "predict"}
    assert 0 < result["16 sleeping actors / one"] <= 17
    assert result["predict / bare"] > 0
    assert result["two actors / one"] > 0
