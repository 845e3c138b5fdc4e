"""Commands, called in this process: what they print and exit with."""

import json
import runpy
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.digits import digits_config, ingested_digits
from transfer import __main__, __version__
from transfer.cli import main
from transfer.config import load_config
from transfer.config.reference import render
from transfer.dataset.decisions import Decided, Decision, DroppedClass
from transfer.dataset.splits import SPLITS
from transfer.demo import BASE_PATH
from transfer.registry.versions import promotions_log
from transfer.storage import Log, open_store


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
    monkeypatch.setattr(main, "_end_at_once", sys.exit)
    with pytest.raises(SystemExit):
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert capfd.readouterr().out == expected


def test_ctrl_c_is_no_error_even_before_the_command_is_loaded(monkeypatch, capfd):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "transfer.cli.main", SimpleNamespace(main=interrupted))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
    assert capfd.readouterr().err == "\nInterrupted.\n"


@pytest.mark.parametrize(("name", "value"), [("floatx", "bfloat16"), ("epsilon", 1), ("image_data_format", "NCHW")])
def test_settings_with_which_keras_does_not_start_are_refused(transfer, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(json.dumps({name: value}))
    done = transfer("inspect", "MobileNetV2")
    assert done.returncode == 2
    assert f"keras.json has `{name}: {value}`, with which Keras does not start" in done.stderr


def test_versions_are_those_that_are_installed(transfer):
    shown = transfer("--version").stdout
    assert shown.startswith(
        f"transfer {__version__} (TensorFlow {version('tensorflow')}, Keras {version('keras')}, Ray "
    )


def test_config_check_finds_a_missing_source_before_anything_is_written(transfer, config, tmp_path):
    done = transfer("config", "check", config, "--set", "dataset.source=/nowhere")
    # As everywhere else where images are not there.
    assert done.returncode == transfer("init", "/nowhere").returncode == 4
    assert "there is nothing at /nowhere" in done.stderr
    assert not list((tmp_path / "storage").rglob("*.json"))


@pytest.mark.parametrize("change", ["base.model=/nowhere.keras", "base.weights=/nowhere.weights.h5"])
def test_config_check_finds_missing_weights(transfer, config, change):
    done = transfer("config", "check", config, "--set", change)
    assert done.returncode == 5
    assert "/nowhere" in done.stderr


def test_config_check_finds_a_typo_in_a_sweeps_space(transfer, config):
    done = transfer("config", "check", config, "--set", 'sweep.space={"phases.0.learning_rte": [1]}')
    assert done.returncode == 2
    assert "did you mean `learning_rate`" in done.stderr


def test_config_check_says_what_a_job_would_do(transfer, config):
    done = transfer("config", "check", config, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["dataset"]["images"], found["dataset"]["classes"]["7"]) == (240, 24)
    dataset = ingested_digits()[1]
    assert found["dataset"]["splits"] == {split: dataset.rows(split) for split in SPLITS}
    assert found["dataset"]["unknown"] == []
    head, last = found["phases"]
    assert (head["phase"], head["trains"], last["trains"]) == (0, "head", "last block")
    features = head["parameters"] // 10 - 1
    assert (
        head["parameters"]
        == (features + 1) * 10
        < last["parameters"]
        < found["network"]["parameters"] + head["parameters"]
    )
    assert found["network"]["weights"] == BASE_PATH.name
    assert found["model"] == {"name": "digits", "publishes": True, "promote": "first", "serves": None}
    shown = transfer("config", "check", config).stdout
    assert "240: 144 train, 47 validation, 49 test" in shown
    assert "10: 0 24, 1 24" in shown
    assert "sweep" not in shown


def test_config_check_says_what_a_sweep_would_do(transfer, config):
    space = "sweep.space={phases.0.learning_rate: [0.1, 0.01]}"
    shown = transfer("config", "check", config, "--set", space).stdout
    assert "2 trials of 2 combinations, random search; the best accuracy on the validation split wins" in shown
    assert "phases.0.learning_rate: 0.1, 0.01" in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["dataset.validation=0", "phases.0.early_stopping={}"], "phases.0.early_stopping needs a validation split"),
        (["dataset.validation=0", "sweep.space={head.dropout: [0, 0.5]}"], "A sweep compares trials on the validation"),
        (["dataset.validation=0", "dataset.test=0"], "nothing to evaluate the run on"),
        (["training.class_weights={cat: 2}"], "training.class_weights names `cat`"),
    ],
)
def test_config_check_finds_what_training_refuses(transfer, config, changes, said):
    done = transfer("config", "check", config, *(part for change in changes for part in ("--set", change)))
    assert done.returncode == 2
    assert said in done.stderr


def test_config_check_counts_no_images_of_dropped_classes(transfer, config):
    loaded = load_config(config)
    then = Decided(dropped=(DroppedClass(name="7", since="2026-11-30", reason="so"),))
    decision = Decision(action="drop-class", at="2026-11-30", reason="so", then=then)
    Log(open_store(loaded.storage), f"classes/{loaded.dataset_name}").append(decision.model_dump(mode="json"))
    found = json.loads(transfer("config", "check", config, "--json").stdout)["dataset"]
    assert (found["images"], len(found["classes"]), sum(found["splits"].values())) == (216, 9, 216)


def test_config_check_says_what_serves_now(transfer, config):
    store = open_store(load_config(config).storage)
    promotion = {"version": 3, "since": "2026-11-30T08:00:00+00:00", "reason": "good", "replaces": None}
    promotions_log(store, "digits").append(promotion, number=1)
    done = transfer("config", "check", config)
    assert "version 3, since 2026-11-30" in done.stdout


@pytest.mark.parametrize(
    ("key", "choices"),
    [("phases.1.unfreeze", "[0, 9]"), ("phases.1.unfreeze", "{integers: [1, 9]}"), ("phases", "[[{unfreeze: 9}]]")],
)
def test_config_check_finds_a_depth_in_a_sweeps_space_that_the_network_does_not_have(transfer, config, key, choices):
    done = transfer("config", "check", config, "--set", f"sweep.space={{{key}: {choices}}}")
    assert done.returncode == 5
    assert f"sweep.space.{key}: unfreeze is " in done.stderr
    assert "has 4 blocks" in done.stderr


def test_config_check_finds_folders_without_classes(transfer, config, tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/one.png").touch()
    done = transfer("config", "check", config, "--set", f"dataset.source={tmp_path}/flat")
    assert done.returncode == 4
    assert "no images with a class" in done.stderr
    assert "one.png" in done.stderr


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
def test_cached_features_are_shown_cleaned_up_and_verified(transfer, config, tmp_path):
    settings = ["--set", "features=always", "--set", "publish.enabled=false"]
    assert transfer("train", config, *settings).returncode == 0
    (listed, *_) = json.loads(transfer("cache", "list", config, "--json").stdout)["cached"]
    assert listed["cached"]["images"] == listed["reachable"]["images"] > 0
    assert transfer("cache", "verify", config).returncode == 0

    content = next((tmp_path / "storage/features").rglob("*.arrow"))
    content.chmod(0o644)
    content.write_bytes(content.read_bytes()[:-1])
    done = transfer("cache", "verify", config)
    assert done.returncode == 3
    assert content.name in done.stdout
    assert "the cached features: 1." in done.stderr
    assert transfer("cache", "verify", config, "--remove").returncode == 0
    assert not content.exists()

    named = ["--frozen-part", listed["digest"][:8]]
    would = transfer("cache", "gc", config, *named)
    assert "would go" in would.stdout
    assert listed["digest"] in transfer("cache", "list", config, "--json").stdout
    done = transfer("cache", "gc", config, *named, "--remove", "--json")
    assert json.loads(done.stdout)["removed"] is True
    assert listed["digest"] not in transfer("cache", "list", config, "--json").stdout
    assert transfer("cache", "gc", config, *named).returncode == 8


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
