"""The bench of serving runs to its end, small."""

import pytest

from tests.system.bench.running import result_of


@pytest.mark.thorough
def test_the_bench_of_serving_compares_both_graphs_with_the_forward_pass():
    result = result_of("serving", "--network MobileNetV2 --image-size 32 --rounds 2")
    assert result["images_a_second"]["32 images"].keys() == {"forward", "merged", "plain"}
    assert result["forward / merged"].keys() == result["merged / plain"].keys() == {"32 images", "one image"}
