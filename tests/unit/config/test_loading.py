from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.config import Config, load_config, parse_config
from transfer.config.reference import render
from transfer.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
MINIMAL = {"name": "n", "storage": "s3://b/p", "dataset": {"source": "digits"}, "base": {"model": "MobileNetV2"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_a_changed_default_shows_in_the_rendered_example(name):
    assert render(load_config(GOLDEN / f"{name}.yaml")) == (GOLDEN / f"{name}.rendered.yaml").read_text()


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_a_rendered_configuration_reads_back_as_itself(name):
    assert load_config(GOLDEN / f"{name}.rendered.yaml") == load_config(str(GOLDEN / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phasess": []}, "phasess: unknown key; did you mean `phases`?"),
        ({"dataset": {"source": "x", "validaton": 0.1}}, "dataset.validaton: unknown key; did you mean `validation`?"),
        ({"phases": [{"learning_rat": 1}]}, "phases.0.learning_rat: unknown key; did you mean `learning_rate`?"),
        ({"phases": [{"early_stopping": {"patience": 3}}]}, "did you mean `patience_epochs`?"),
        ({"head": {"zzz": 1}}, "head.zzz: unknown key; known here: pooling, hidden, dropout, l2, output"),
        ({"lr[0]": 1}, "lr[0]: unknown key; known here: name, "),
        ({"head": {"int": 1}}, "head.int: unknown key; "),
        ({"activations": "never"}, "activations: unknown key; it is called `features`, and its `keep` is called"),
        ({"features": {"keep": "never"}}, "features.keep: unknown key; it is called `cache`"),
        ({"dataset": {}}, "dataset.source: is missing"),
        ({"dataset": {"source": "x", "validation": 0.6, "test": 0.4}}, "validation + test is 1 and must be below 1"),
        ({"dataset": {"source": "x", "background": "fff"}}, '`white` or `"#rrggbb"` (found `fff`)'),
        ({"dataset": {"source": "x", "splits": {"test": "test"}}}, "splits names no folder for `train`"),
        ({"dataset": {"source": "x", "splits": {"train": "a", "test": "a/b"}}}, "`a` and `a/b`, and one of them holds"),
        ({"dataset": {"source": "x", "splits": {"train": "../a"}}}, "splits.train is `../a` and must be the path"),
        ({"dataset": {"source": "x", "subfolder": "/a"}}, "subfolder is `/a` and must be the path"),
        ({"dataset": {"source": "x", "group_pattern": "p("}}, "`p(`, which is no regular expression"),
        ({"dataset": {"source": "x", "group_pattern": "(p)(q)"}}, "`(p)(q)`, with 2 groups; it may have one"),
        ({"dataset": {"source": "x", "group_pattern": "p", "group_column": "p"}}, "both say what a group is"),
        ({"workers": {"count": 3}}, "training.batch_size is 32 and must be divisible by the 3 workers"),
        ({"phases": [{"unfreeze": -1}]}, "unfreeze is -1 and must be 0 or more"),
        ({"phases": [{"lora": {"rank": 4}}]}, "lora is given and unfreeze is 0, so no block would get an adapter"),
        ({"phases": [{"learning_rate": float("nan")}]}, "phases.0.learning_rate"),
        ({"phases": [{"optimizer": "adamm"}]}, "`adam`, `adamw` or `sgd` (found `adamm`); did you mean `adam`?"),
        ({"base": {"model": "M", "channels": 2}}, "base.channels: must be 1 or 3 (found `2`)"),
        ({"training": {"class_weights": "zzz"}}, "class_weights: may also be keys and values (found `zzz`)"),
        ({"workers": {"count": "two"}}, "workers.count: must be a whole number (found `two`)"),
        ({"name": "../up"}, "name"),
    ],
)
def test_a_mistake_is_named_with_its_place(change, message):
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, **change})
    assert message in str(caught.value)


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, "head": {"hiden": []}, "training": {"batchsize": 1}})
    assert "did you mean `hidden`?" in str(caught.value)
    assert "did you mean `batch_size`?" in str(caught.value)


def test_of_very_many_mistakes_the_first_are_listed():
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, **{f"key{number}": 1 for number in range(10_000)}})
    assert str(caught.value).count("unknown key") == 50
    assert str(caught.value).endswith("  and 9,950 more")


def test_overrides_reach_into_sections_lists_and_short_forms(tmp_path):
    path = write(
        tmp_path, "{name: n, storage: s3://b/p, dataset: {source: digits}, base: {model: M}, phases: [{}, {}]}"
    )
    overrides = ["phases.1.epochs=7", "storage.region=eu", "head.hidden=[8, 9]", "phases.0.learning_rate=1e-4"]
    config = load_config(path, overrides)
    assert config.phases[1].epochs == 7
    assert (config.storage.uri, config.storage.region) == ("s3://b/p", "eu")
    assert config.head.hidden == [8, 9]
    assert config.phases[0].learning_rate == 1e-4


@pytest.mark.parametrize("override", ["phases.9.epochs=1", "phases.x.epochs=1", "nonsense", "=1", "name.deep=1"])
def test_an_override_that_fits_nowhere_is_refused(tmp_path, override):
    path = write(tmp_path, "{name: n, storage: s3://b/p, dataset: {source: digits}, base: {model: M}, phases: [{}]}")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "stands twice"),
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("[1, 2]", "expected keys and values"),
        ("{", "not readable as YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
        ("a: !!bool x", "not readable as YAML"),
        ("a: !!timestamp x", "not readable as YAML"),
        ("a: 2001-99-99", "not readable as YAML"),
        ("a: 1:59:59" + ":59" * 1000 + ".5", "not readable as YAML"),
        ("a: " + "9" * 5000, "not readable as YAML"),
        ("a: 0x" + "f" * 5000, "more than 63 bits"),
        ('a: "\\ud800"', "not readable as YAML"),
        ('storage: "a\\0b"', "holds a zero byte"),
        ("base: {options: {a: .nan}}", "nan is no number"),
        ("base: {options: {a: 2001-01-01}}", "read as a date; put it in quotes"),
        ("base: {options: {a: !!set {b}}}", "read as a set"),
        ("1: 2", "the key 1 is not a text; put it in quotes"),
        ("# " + "x" * 128 * 1024, "too large for a configuration"),
    ],
)
def test_yaml_that_is_no_configuration_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_off_and_on_need_no_quotes(tmp_path):
    text = "{name: n, storage: s, dataset: {source: digits}, base: {model: M, antialias: on, accept_head: off}, "
    config = load_config(write(tmp_path, text + "training: {mixed_precision: off}}"))
    assert (config.training.mixed_precision, config.base.antialias, config.base.accept_head) == ("off", True, False)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no file .*nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_folder_of_images_instead_of_a_file_leads_to_init(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, and a configuration is a YAML file") as refused:
        load_config(tmp_path)
    assert f"`transfer init {tmp_path}`" in refused.value.advice


def test_a_folder_for_storage_is_the_same_from_every_working_directory():
    config = parse_config({**MINIMAL, "storage": "somewhere"})
    assert config.storage.uri == str(Path("somewhere").absolute())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_document_is_accepted_or_explained(document):
    with suppress(ConfigError):
        assert isinstance(parse_config({**MINIMAL, "dataset": document}), Config)


def test_a_secret_that_stands_where_its_variable_is_to_be_named_is_not_shown():
    minimal = {"name": "n", "storage": "s", "dataset": {"source": "digits"}, "base": {"model": "MobileNetV2"}}
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as caught:
        parse_config({**minimal, "nightly": {"webhook_env": "https://hooks.example/a-secret"}})
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize("size", [[160], "160x224", [160, 224, 3], {"height": 160}, [160, "x"], 0, [8, 5000]])
def test_a_wrong_image_size_is_one_problem_in_the_words_of_the_configuration(size):
    minimal = {"name": "n", "storage": "s", "dataset": {"source": "digits"}}
    with pytest.raises(ConfigError) as refused:
        parse_config({**minimal, "base": {"model": "MobileNetV2", "image_size": size}})
    (line,) = str(refused.value).splitlines()[1:]
    assert line.startswith("  base.image_size: must be the side of a square or `[height, width]`")
    assert str(size) in line


def test_a_config_that_is_built_in_python_explains_what_is_wrong():
    with pytest.raises(ConfigError) as refused:
        Config(
            name="pets",
            storage="storage",
            dataset={"source": "images"},
            base={"model": "VGG16", "image_sise": 96},
            phases=[{"epochs": 0}],
        )
    assert str(refused.value).splitlines() == [
        "This is not a valid configuration:",
        "  base.image_sise: unknown key; did you mean `image_size`?",
        "  phases.0.epochs: must be greater than or equal to 1 (found `0`)",
    ]
