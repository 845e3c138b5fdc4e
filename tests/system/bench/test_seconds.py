"""The bench of whole commands runs to its end, small."""

import pytest

from tests.system.bench.running import result_of


@pytest.mark.thorough
def test_the_bench_of_seconds_compares_commands_with_what_people_would_run():
    result = result_of("seconds", "--images 60 --image-size 32 --rounds 1")
    assert result["ratios"].keys() == result["aims"].keys()
    assert all(value > 0 for value in result["seconds"].values())
