"""The bench of scale runs to its end, small; it tells growth apart, and its estimate follows its inputs."""

import pytest

from scripts.bench.scale_estimate import ASSUMPTIONS, Measured, estimate
from scripts.bench.scale_figures import Figure, exponent, report, seconds_for
from scripts.bench.scale_synthetic import wear
from tests.system.bench.running import result_of

PARTS = {"plan", "files", "index", "commit", "disk cache", "list", "features", "order"}
SMALL = "--shards 10,100 --images-per-shard 8 --tasks 0 --request-shards 1,2 --networks MobileNetV2 --wear-shards 4"


@pytest.fixture(scope="module")
def result():
    return result_of("scale", f"{SMALL} --nights 3")


@pytest.mark.thorough
def test_every_part_is_measured_at_every_size(result):
    assert [size["shards"] for size in result["driver"]] == [10, 100]
    for size in result["driver"]:
        assert {figure["part"] for figure in size["figures"]} == size["memory"].keys() == PARTS
        assert all(memory["peak_mib"] >= memory["before_mib"] for memory in size["memory"].values())


@pytest.mark.thorough
def test_requests_of_the_jobs_are_those_that_the_code_makes(result):
    jobs = {job: found["requests_a_shard"] for job, found in result["requests"]["jobs"].items()}
    # The footer, and the one row group of so small a shard.
    assert jobs["epoch from images, no disk cache"] == {"GET shards": 2}
    assert jobs["epoch from images, warm disk cache"] == jobs["epoch from cached features, once opened"] == {}
    assert jobs["what a shard of the version before holds, by its index"] == {}
    assert jobs["evaluation from images, no disk cache"] == {"GET shards": 1}
    assert jobs["open cached features, warm disk cache"] == {}
    assert jobs["open cached features, cold disk cache"] == {"GET features": 1, "HEAD features": 1}
    assert result["requests"]["maps_a_cached_shard"] == 1
    both, one = (
        result["requests"]["jobs"][f"epoch from images, {worker}no disk cache"]["received_bytes_a_shard"]
        for worker in ("", "one of two workers, ")
    )
    assert both >= one > 4 * result["requests"]["image_bytes"]


@pytest.mark.thorough
def test_deeper_training_exchanges_more_up_to_the_whole_network(result):
    rows = result["network"]["MobileNetV2"]
    head = 1280 * 1000 + 1000
    assert rows[0]["parameters"] == head
    # The figure that keras.applications documents for the network without its top, less its moving averages.
    assert rows[-1]["parameters"] == head + 2_257_984 - 34_112
    assert rows[-1]["all_reduce_bytes"] == pytest.approx(rows[-1]["parameters"] * 4 * 2 * 63 / 64)
    parameters = [row["parameters"] for row in rows]
    assert parameters == sorted(parameters)


@pytest.mark.thorough
def test_the_report_names_every_input_of_the_estimate_and_where_it_is_from(result):
    text = report(result)
    assert "ESTIMATE, not a measurement" in text
    for assumption in ASSUMPTIONS:
        assert assumption.name in text
        assert assumption.source in text


def figures(*found):
    return [Figure("part", "step", count, "shards", count, cpu_s, cpu_s) for count, cpu_s in found]


def test_growth_is_told_from_the_two_largest_sizes():
    assert exponent(figures((10, 5.0), (1000, 1.0), (100_000, 10_000.0))) == pytest.approx(2)
    assert exponent(figures((10, 1.0), (1000, 100.0))) == pytest.approx(1)
    assert exponent(figures((10, 0.0001), (1000, 0.1))) is None
    assert exponent(figures((10, 1.0))) is None


@pytest.mark.thorough
def test_what_grows_faster_than_linearly_is_said_so(result):
    shown = {**result, "driver": [{"shards": 10, "figures": [], "memory": {}, "facts": {}}]}
    shown["driver"][0]["figures"] = [vars(figure) | {"part": "plan"} for figure in figures((10, 1.0), (1000, 10_000.0))]
    assert "n^2.00: FASTER THAN LINEAR" in report(shown)


def test_a_larger_size_costs_what_its_growth_says_and_never_less_than_linearly():
    assert seconds_for(figures((10, 1.0), (100, 100.0)), 1000) == pytest.approx(10_000)
    assert seconds_for(figures((10, 1.0), (100, 2.0)), 1000) == pytest.approx(20)


def measured(**changes):
    found = {
        "seconds": lambda _, count: count * 1e-6,
        "requests": lambda _: 3.0,
        "reads_in_evaluation": 3.0,
        "check_cpu_s": 3e-3,
        "decode_cpu_s": 2e-3,
        "index_bytes": 40.0,
        "task_s": 1e-3,
        "sha256_bytes_per_s": 1e9,
        "chunk_images": 6500.0,
        "max_maps": 65_530.0,
        "maps_a_shard": 1.0,
    }
    return Measured(**found | changes)


def test_a_night_with_little_new_costs_less_and_more_hosts_make_a_night_shorter():
    first, later = estimate(measured(), {})["total_s"].values()
    assert later < first
    assert estimate(measured(), {"hosts": 16})["total_s"]["first night"] < first
    assert estimate(measured(), {"images": 2e8})["total_s"]["first night"] > 1.5 * first


def test_a_step_takes_as_long_as_what_it_waits_for_longest():
    found = estimate(measured(), {"forward_images_per_s": 1.0})
    (extraction,) = (step for step in found["nights"]["first night"] if step["step"] == "extract")
    assert extraction["bound_by"] == "GPUs"
    assert extraction["seconds"] == pytest.approx(0.9 * 100e6 / 64)


def test_an_input_that_is_changed_is_shown_as_given_and_an_unknown_one_refused():
    (given,) = (each for each in estimate(measured(), {"hosts": 4})["assumptions"] if each["name"] == "hosts")
    assert (given["value"], given["source"]) == (4, "given")
    with pytest.raises(SystemExit, match="nonsense"):
        estimate(measured(), {"nonsense": 1})


def test_wear_counts_what_is_copied():
    found = wear(shards=20, images_per_shard=100, nights=12)
    assert (found["copied"]["0.01"], found["copied"]["0.3"]) == (0, pytest.approx(0.7, abs=0.2))
    nights = found["nights"]
    assert nights["shards_before"] < nights["shards_after"] <= nights["shards_if_written_at_once"] + 12
    assert 0 < nights["copied_an_added_image"] < 9
