"""Commands, called in this process: what they print and exit with."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.digits import digits_config, ingested_digits
from transfer import cli
from transfer.config.reference import render


@pytest.fixture
def config(tmp_path):
    template, _ = ingested_digits()
    path = tmp_path / "config.yaml"
    path.write_text(render(digits_config(Path(template.name) / "images", str(tmp_path / "storage"))))
    return path


@pytest.mark.parametrize("job", ["ingest", "train", "evaluate", "publish", "predict", "lr_find"])
def test_every_job_takes_what_its_command_takes(transfer, capfd, monkeypatch, job):
    expected = transfer(job.replace("_", "-"), "--help").stdout
    monkeypatch.setattr(sys, "argv", [job, "--help"])
    # TensorFlow is loaded here, and then a command ends its process.
    monkeypatch.setattr(cli, "_end_at_once", sys.exit)
    with pytest.raises(SystemExit):
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert capfd.readouterr().out == expected


@pytest.mark.parametrize(("name", "value"), [("floatx", "bfloat16"), ("epsilon", 1), ("image_data_format", "NCHW")])
def test_settings_with_which_keras_does_not_start_are_refused(transfer, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(json.dumps({name: value}))
    done = transfer("inspect", "MobileNetV2")
    assert done.returncode == 2
    assert f"keras.json has `{name}: {value}`, with which Keras does not start" in done.stderr


def test_config_check_finds_a_missing_source_before_anything_is_written(transfer, config, tmp_path):
    done = transfer("config", "check", config, "--set", "dataset.source=/nowhere")
    assert done.returncode == 2
    assert "there is nothing at /nowhere" in done.stderr
    assert not list((tmp_path / "storage").rglob("*.json"))


@pytest.mark.parametrize("change", ["base.model=/nowhere.keras", "base.weights=/nowhere.weights.h5"])
def test_config_check_finds_missing_weights(transfer, config, change):
    done = transfer("config", "check", config, "--set", change)
    assert done.returncode == 2
    assert "/nowhere" in done.stderr


def test_config_check_finds_a_typo_in_a_sweeps_space(transfer, config):
    done = transfer("config", "check", config, "--set", 'sweep.space={"phases.0.learning_rte": [1]}')
    assert done.returncode == 2
    assert "did you mean `learning_rate`" in done.stderr


def test_people_get_lines_and_tables(transfer, config):
    done = transfer("inspect", config)
    assert done.returncode == 0, done.stderr
    assert "block4" in done.stdout
    assert "parameters" in done.stdout


def test_show_prints_what_reads_back(transfer, config):
    done = transfer("config", "show", config)
    shown = Path(config).with_name("shown.yaml")
    shown.write_text(done.stdout)
    assert transfer("config", "show", shown).stdout == done.stdout


@pytest.mark.system  # a job starts the server of its processes before anything else
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("base.model=MobileNetV22", 5, "MobileNetV2"),
        ("phases.0.unfreeze=40", 5, "unfreeze is 40"),
        ("phases.0.unfreeze=blok4", 5, "block4"),
        ("base.image_size=64", 5, "base.image_size"),
    ],
)
def test_a_network_that_cannot_be_used_is_found_before_images_are_read(transfer, config, tmp_path, change, code, said):
    done = transfer("train", config, "--set", change)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "storage/shards").exists()


@pytest.mark.system
def test_what_is_kept_is_shown_cleaned_up_and_verified(transfer, config, tmp_path):
    settings = ["--set", "activations=always", "--set", "publish.enabled=false"]
    assert transfer("train", config, *settings).returncode == 0
    (listed, *_) = json.loads(transfer("cache", "ls", config, "--json").stdout)["kept"]
    assert listed["kept"]["images"] == listed["reachable"]["images"] > 0
    assert transfer("cache", "verify", config).returncode == 0

    content = next((tmp_path / "storage/activations").rglob("*.arrow"))
    content.chmod(0o644)
    content.write_bytes(content.read_bytes()[:-1])
    done = transfer("cache", "verify", config)
    assert done.returncode == 3
    assert content.name in done.stdout
    assert "what is kept: 1." in done.stderr
    assert transfer("cache", "verify", config, "--remove").returncode == 0
    assert not content.exists()

    prefix = ["--prefix", listed["prefix"][:8]]
    would = transfer("cache", "gc", config, *prefix)
    assert "would go" in would.stdout
    assert listed["prefix"] in transfer("cache", "ls", config, "--json").stdout
    done = transfer("cache", "gc", config, *prefix, "--remove", "--json")
    assert json.loads(done.stdout)["removed"] is True
    assert listed["prefix"] not in transfer("cache", "ls", config, "--json").stdout
    assert transfer("cache", "gc", config, *prefix).returncode == 8


@pytest.mark.system
def test_lr_find_suggests_a_rate_that_can_be_set(transfer, config, caplog):
    caplog.set_level("INFO", logger="transfer")
    done = transfer("lr-find", config, "--steps", 60, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["rates"]) == len(answer["losses"]) == answer["steps"]
    assert Path(answer["page"]).exists()
    shown = transfer("config", "show", config, "--set", answer["set"], "--json")
    assert json.loads(shown.stdout)["phases"][0]["learning_rate"] == pytest.approx(answer["suggestion"], rel=0.06)
    again = transfer("lr-find", config, "--steps", 60)
    assert "was made before" in caplog.text
    assert answer["set"] in again.stdout
