"""The bench of reuse runs to its end, small."""

import pytest

from tests.system.bench.running import result_of

ARMS = {"tutorial", "careful", "bare", "ours-cold", "ours-warm", "ours-grown"}
RATIOS = {
    "tutorial / ours-cold",
    "careful / ours-cold",
    "ours-cold / bare",
    "ours-warm / ours-cold",
    "ours-grown / ours-cold",
}


@pytest.mark.thorough
def test_the_bench_of_reuse_reports_every_arm_and_finds_that_all_learn_the_same():
    small = "--images 24 --epochs 10 --rounds 1 --image-size 32 --networks MobileNetV2"
    result = result_of("reuse", small)
    figures = result["networks"]["MobileNetV2"]
    for seconds in ("work_s", "start_s", "build_s", "total_s"):
        assert figures[seconds].keys() >= ARMS
    assert figures["ratio"].keys() == figures["ratio_with_start"].keys() == RATIOS
    assert figures["parity"]["agree"]
    assert figures["parity"]["accuracy"].keys() == ARMS - {"bare"}
