import math
from collections import Counter

import pytest

from transfer.config import parse_config
from transfer.errors import ConfigError
from transfer.tuning.space import check_space, fixed_trials, longest_epochs, space_of, with_values

MINIMAL = {"name": "n", "storage": "s3://b/p", "dataset": {"source": "digits"}, "base": {"model": "MobileNetV2"}}
RATE = {"phases.0.learning_rate": {"log_uniform": [1e-5, 1e-1]}}


def config_of(space, *, phases=({"epochs": 5},), workers=None, **options):
    return parse_config(
        {**MINIMAL, "phases": list(phases), "workers": workers or {}, "sweep": {"space": space, **options}}
    )


def values_of(config):
    return [trial.values for trial in fixed_trials(config)]


def test_a_trial_is_the_configuration_with_its_values_in_place_and_no_sweep():
    config = config_of({"phases.0.unfreeze": [2], "head.hidden": [[8, 9]], "phases.0.optimizer": ["sgd"]})
    (trial,) = fixed_trials(config)
    assert trial.number == 1
    assert trial.values == {"phases.0.unfreeze": 2, "head.hidden": [8, 9], "phases.0.optimizer": "sgd"}
    assert trial.config.sweep is None
    assert trial.config.phases[0].unfreeze == 2
    assert trial.config.head.hidden == [8, 9]
    assert trial.config.phases[0].optimizer.name == "sgd"
    assert trial.config.dataset == config.dataset
    assert config.phases[0].unfreeze == 0


def test_a_value_reaches_into_a_section_that_is_absent():
    config = with_values(config_of(RATE), {"phases.0.early_stopping.patience_epochs": 2})
    assert config.phases[0].early_stopping.patience_epochs == 2


def test_a_grid_is_every_combination_in_the_order_of_the_space():
    config = config_of({"phases.0.unfreeze": [0, 3], "training.seed": {"integers": [4, 6]}}, search="grid")
    assert [tuple(values.values()) for values in values_of(config)] == [(0, 4), (0, 5), (0, 6), (3, 4), (3, 5), (3, 6)]


def test_choices_are_read_as_the_configuration_reads_them():
    # YAML reads 1e-3 as a text.
    config = config_of({"phases.0.learning_rate": ["1e-3", 0.01]}, search="grid")
    assert values_of(config) == [{"phases.0.learning_rate": 0.001}, {"phases.0.learning_rate": 0.01}]


SPACE = {
    **RATE,
    "head.dropout": {"uniform": [0.1, 0.4]},
    "training.seed": {"integers": [0, 3]},
    "phases.0.unfreeze": [0, 1, 3],
}


def test_random_values_fill_their_domains():
    found = values_of(config_of(SPACE, trials=400))
    rates = [values["phases.0.learning_rate"] for values in found]
    decades = Counter(math.floor(math.log10(rate)) for rate in rates)
    assert set(decades) == {-5, -4, -3, -2}
    assert min(decades.values()) > 60
    dropouts = [values["head.dropout"] for values in found]
    assert 0.1 <= min(dropouts) < 0.12
    assert 0.38 < max(dropouts) <= 0.4
    assert set(Counter(values["training.seed"] for values in found)) == {0, 1, 2, 3}
    assert min(Counter(values["phases.0.unfreeze"] for values in found).values()) > 100


def test_random_values_are_decided_by_the_seed():
    assert values_of(config_of(SPACE, trials=8)) == values_of(config_of(SPACE, trials=8))
    assert values_of(config_of(SPACE, trials=8)) != values_of(config_of(SPACE, trials=8, seed=1))


def test_random_values_are_the_same_forever():
    # Written down once: a change of these numbers makes other runs of everybody's trials.
    expected = [
        {"phases.0.learning_rate": 0.0125739, "head.dropout": 0.235404, "training.seed": 0, "phases.0.unfreeze": 1},
        {"phases.0.learning_rate": 2.06826e-05, "head.dropout": 0.355849, "training.seed": 2, "phases.0.unfreeze": 0},
    ]
    assert values_of(config_of(SPACE, trials=2)) == expected


def test_more_trials_begin_with_the_same_ones():
    assert values_of(config_of(SPACE, trials=20))[:8] == values_of(config_of(SPACE, trials=8))


def test_random_search_repeats_no_combination():
    config = config_of({"phases.0.unfreeze": [0, 1, 3], "training.seed": {"integers": [0, 3]}}, trials=12)
    found = [tuple(values.values()) for values in values_of(config)]
    assert len(set(found)) == len(found) == 12


def test_random_search_ends_when_every_combination_was_tried():
    assert len(values_of(config_of({"phases.0.unfreeze": [0, 1, 3]}, trials=10))) == 3


@pytest.mark.parametrize("options", [{"search": "optuna"}, {"scheduler": "pbt"}])
def test_trials_that_depend_on_results_are_not_known_before(options):
    assert fixed_trials(config_of(RATE, **options)) is None


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"phases.0.learning_rat": [1]}, "phases.0.learning_rat: unknown key; did you mean `learning_rate`?"),
        ({"phasess.0.epochs": [1]}, "phasess: unknown key; did you mean `phases`?"),
        ({"phases.3.epochs": [1]}, "sweep.space.phases.3.epochs: `3` does not fit, a list of 1 stands there"),
        ({"training.seed.deep": [1]}, "sweep.space.training.seed.deep: `deep` does not fit, `0` stands there"),
        ({"head.dropout": [0.1, 1.5]}, "with head.dropout=1.5"),
        ({"head.dropout": {"uniform": [0.0, 1.0]}}, "with head.dropout=1.0"),
        ({"phases.0.epochs": {"uniform": [1, 5]}}, "with phases.0.epochs="),
        ({"phases.0.unfreeze": {"integers": [-1, 3]}}, "unfreeze is -1 and must be 0 or more"),
        ({"phases.0.learning_rate": [0.001, "1e-3"]}, "sweep.space.phases.0.learning_rate: `0.001` stands twice"),
    ],
)
def test_a_space_that_does_not_fit_the_configuration_is_refused(space, message):
    with pytest.raises(ConfigError) as caught:
        check_space(config_of(space))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": {"kind": "asha", "grace_epochs": 5}}, "grace_epochs is 5 and the longest trial has 5 epochs"),
        ({"scheduler": {"kind": "pbt", "interval_epochs": 7}}, "interval_epochs is 7 and the longest trial has 5"),
        ({"scheduler": "median", "trials": 3}, "min_trials is 3, and each trial has only 2 others"),
        ({"scheduler": "pbt", "trials": 1}, "which has no other to copy"),
        ({"scheduler": "pbt", "workers": {"count": 2}}, "workers.count is 2"),
        ({"scheduler": "pbt", "space": {"phases.0.unfreeze": [0, 1]}}, "cannot change during training"),
    ],
)
def test_a_scheduler_that_could_not_act_is_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        check_space(config_of(**{"space": RATE, **options}))
    assert message in str(caught.value)


def test_a_space_that_fits_is_accepted():
    check_space(config_of(SPACE, scheduler="asha"))
    check_space(config_of(RATE, scheduler="pbt"))


def test_a_configuration_without_a_sweep_says_what_is_missing():
    with pytest.raises(ConfigError, match="has no section `sweep`"):
        check_space(parse_config(MINIMAL))


def test_the_longest_trial_counts_the_epochs_of_all_phases_at_their_most():
    phases = [{"epochs": 3}, {"epochs": 4}]
    assert longest_epochs(config_of(RATE, phases=phases)) == 7
    searched = {"phases.0.epochs": {"integers": [1, 9]}, "phases.1.epochs": [6, 2]}
    assert longest_epochs(config_of(searched, phases=phases)) == 15
    assert longest_epochs(config_of({"phases": [[{"epochs": 2}], [{"epochs": 2}, {"epochs": 3}]]})) == 5


def test_domains_keep_their_ends():
    space = space_of(config_of({"head.dropout": {"uniform": [0.12345678, 0.12345679]}}))
    assert space["head.dropout"].ends == (0.12345678, 0.12345679)
    (values, *_) = values_of(config_of({"head.dropout": {"uniform": [0.12345678, 0.12345679]}}))
    assert 0.12345678 <= values["head.dropout"] <= 0.12345679


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"workers": {"count": 2}}, "workers.count is 2"),
        ({"features": "never"}, "features.cache is `never`"),
        ({"augmentation": {"flip": "horizontal"}}, "a phase augments its images"),
        ({"augmentation": {"flip": "horizontal", "views": 2}}, "a phase augments its images"),
        ({"space": {"augmentation.flip": ["none", "horizontal"]}}, "a phase augments its images"),
    ],
    ids=str,
)
def test_folds_that_could_not_be_trained_are_refused(sections, message):
    sweep = {"space": sections.get("space", RATE)}
    document = {**MINIMAL, "phases": [{"epochs": 5}], **{key: sections[key] for key in sections if key != "space"}}
    check_space(parse_config({**document, "sweep": sweep}))
    with pytest.raises(ConfigError, match=message):
        check_space(parse_config({**document, "sweep": {**sweep, "folds": 3}}))


def test_folds_of_phases_that_do_not_augment_are_fine():
    document = {**MINIMAL, "phases": [{"epochs": 5, "augment": False}], "augmentation": {"flip": "horizontal"}}
    check_space(parse_config({**document, "sweep": {"space": RATE, "folds": 3}}))
