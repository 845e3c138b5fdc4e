"""Published versions measured in processes of their own."""

import json

import pytest

from tests.digits import digits_config
from tests.exported import publish_untrained
from transfer.config.reference import render
from transfer.registry import benchmark


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = digits_config(tmp_path / "images", str(tmp_path / "storage"))
    for _ in range(2):
        publish_untrained(config)
    (tmp_path / "config.yaml").write_text(render(config))
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    return tmp_path / "config.yaml"


def test_two_versions_are_measured_in_turns(config, transfer):
    done = transfer("benchmark", config, 2, "--against", 1, "--max-load", 1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["version"] for each in found["versions"]] == [2, 1]
    for each in found["versions"]:
        assert 0 < each["milliseconds"] <= each["milliseconds_p95"]
        assert each["memory_bytes"] > each["memory_before_bytes"] > 10 * 1024**2
        assert min(each["load_s"], each["images_a_second"], each["joules_an_image"], each["size_bytes"]) > 0
    assert found["ratios"]["size_bytes"] == pytest.approx(1, rel=1e-3)
    assert (
        found["ratios"]["milliseconds"] == found["versions"][0]["milliseconds"] / found["versions"][1]["milliseconds"]
    )
