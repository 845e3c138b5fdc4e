import pytest

from transfer.config import load_config, parse_config
from transfer.errors import ConfigError

MINIMAL = {"name": "n", "storage": "s3://b/p", "dataset": {"source": "digits"}, "base": {"model": "MobileNetV2"}}
RATES = {"phases.0.learning_rate": [1e-4, 1e-3]}


def sweep(space=RATES, **options):
    return parse_config({**MINIMAL, "sweep": {"space": space, **options}}).sweep


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"space": {}}, "sweep.space: Dictionary should have at least 1 item"),
        ({"space": RATES, "serch": "grid"}, "sweep.serch: unknown key; did you mean `search`?"),
        (
            {"space": {"head.dropout": {"unifrom": [0, 1]}}},
            "sweep.space.head.dropout.unifrom: unknown key; did you mean",
        ),
        ({"space": {"head.dropout": 0.3}}, "sweep.space.head.dropout: expected a list of choices"),
        ({"space": {"head.dropout": []}}, "sweep.space.head.dropout.choices: List should have at least 1 item"),
        ({"space": {"head.dropout": {}}}, "0 of `choices`, `uniform`, `log_uniform`, `integers` are given"),
        ({"space": {"head.dropout": {"choices": [0], "uniform": [0, 1]}}}, "2 of `choices`"),
        ({"space": {"head.dropout": {"uniform": [0.5, 0.5]}}}, "first end must be below its second"),
        ({"space": {"head.dropout": {"uniform": [0.1, 0.2, 0.3]}}}, "sweep.space.head.dropout.uniform"),
        ({"space": {"head.l2": {"log_uniform": [0, 1]}}}, "both ends must be above zero"),
        ({"space": {"training.seed": {"integers": [3, 1]}}}, "first end must be below its second"),
        ({"space": {"storage.uri": ["a"]}}, "`storage.uri` cannot be searched: all trials share one storage"),
        (
            {"space": {"dataset.validation": [0.1]}},
            "cannot be searched: trials can only be compared on the same images",
        ),
        ({"space": {"workers.count": [1, 2]}}, "`workers.count` cannot be searched"),
        ({"space": {"phases": [[]], **RATES}}, "`phases` and `phases.0.learning_rate` are both searched"),
        ({"space": RATES, "search": "grid", "trials": 3}, "trials is 3, and `search: grid` tries every combination"),
        ({"space": {"head.dropout": {"uniform": [0, 0.5]}}, "search": "grid"}, "`head.dropout` is continuous"),
        ({"space": {"training.seed": {"integers": [0, 99_999]}}, "search": "grid"}, "the grid has 100000 combinations"),
        ({"space": RATES, "scheduler": "ashaa"}, "(found `ashaa`)"),
        ({"space": RATES, "scheduler": {"kind": "median", "reduction_factor": 2}}, "is an option of `asha`, and"),
        (
            {"space": RATES, "scheduler": {"grace_epochs": 2}},
            "is an option of `asha` and `median`, and the scheduler is",
        ),
        ({"space": RATES, "scheduler": "pbt", "search": "optuna"}, "`scheduler: pbt` begins with `random` values"),
        ({"space": RATES, "scheduler": "pbt", "folds": 3}, "folds is 3, and `scheduler: pbt`"),
        ({"space": RATES, "scheduler": "pbt", "concurrency": 2}, "`scheduler: pbt` keeps all trials in flight"),
        ({"space": RATES, "folds": 1}, "folds is 1 and must be 0"),
        ({"space": RATES, "target": 95}, "target is 95 and an accuracy is at most 1"),
    ],
)
def test_a_mistake_in_the_sweep_is_named_with_its_place(section, message):
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, "sweep": section})
    assert message in str(caught.value)


def test_a_list_is_short_for_choices_and_a_name_for_a_scheduler():
    found = sweep(scheduler="asha")
    assert found.space["phases.0.learning_rate"].choices == [1e-4, 1e-3]
    assert (found.scheduler.kind, found.scheduler.grace_epochs, found.scheduler.reduction_factor) == ("asha", 1, 3)
    assert found.scheduler.min_trials is None


def test_overrides_reach_domains_by_their_dotted_key_and_spell_schedulers_out(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "{name: n, storage: s3://b/p, dataset: {source: digits}, base: {model: M}, features: always,"
        " sweep: {space: {phases.0.unfreeze: [0, 1]}, scheduler: asha}}"
    )
    overrides = [
        "sweep.space.phases.0.unfreeze=[0, 2, 3]",
        "sweep.space.head.dropout={uniform: [0, 0.5]}",
        "sweep.scheduler.grace_epochs=2",
        "features.map_dtype=float16",
    ]
    config = load_config(path, overrides)
    assert config.sweep.space["phases.0.unfreeze"].choices == [0, 2, 3]
    assert config.sweep.space["head.dropout"].ends == (0.0, 0.5)
    assert (config.sweep.scheduler.kind, config.sweep.scheduler.grace_epochs) == ("asha", 2)
    assert (config.features.cache, config.features.map_dtype) == ("always", "float16")


def test_an_override_reaches_into_a_section_that_is_written_as_null(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "{name: n, storage: s3://b/p, dataset: {source: digits}, base: {model: M}, phases: [{early_stopping: null}]}"
    )
    config = load_config(path, ["phases.0.early_stopping.patience_epochs=7"])
    assert config.phases[0].early_stopping.patience_epochs == 7


def test_a_sweep_makes_no_more_trials_than_there_are_combinations():
    assert sweep(trials=5).trial_count == 2
    assert sweep(search="optuna").trial_count == 2
    assert sweep({**RATES, "head.dropout": {"uniform": [0, 0.5]}}, trials=5).trial_count == 5
    assert sweep({**RATES, "training.seed": {"integers": [1, 4]}}, search="grid").trial_count == 8
    assert sweep({"head.dropout": {"uniform": [0, 0.5]}}).trial_count == 16
