"""Real experiments of Ray Tune, with trials that only look their result up."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.digits import store_some_digits
from tests.runs import trial
from transfer.config import parse_config
from transfer.storage import open_store
from transfer.tuning import search
from transfer.tuning.callbacks import Notes
from transfer.tuning.records import SweepRecords, open_sweep
from transfer.tuning.space import drawn

MINIMAL = {"name": "n", "dataset": {"source": "digits"}, "base": {"model": "MobileNetV2"}}
RATE = {"phases.0.learning_rate": {"log_uniform": [1e-5, 1e-1]}}
EPOCHS = 8


def _rate(params, _epoch):
    return params["values"]["phases.0.learning_rate"]


def config_of(space=RATE, *, storage="s3://b/p", **options):
    return parse_config(
        {**MINIMAL, "storage": storage, "phases": [{"epochs": EPOCHS}], "sweep": {"space": space, **options}}
    )


def tune_sweep(config, folder, *, value, earlier=(), cpus=None, notes_of=None):
    """Run the sweep's trials through Tune, one at a time unless `cpus` says what one takes.

    `value(params, epoch)` is what a trial reports; `notes_of(budget)` is what else hears of trials. Returns each
    trial's last result, why the sweep was ended, and the numbers of the trials in the order in which they were started,
    trained an epoch and came to their end.
    """
    import ray
    from ray import tune

    folder.mkdir(exist_ok=True)
    (folder / "ended").touch()

    def note(name, params):
        with (folder / name).open("a") as notes:
            notes.write(f"{params['trial']}\n")

    class LookedUp(tune.Trainable):
        """A class, as the trials of a real sweep are, and its process goes from trial to trial like theirs."""

        def setup(self, params):
            self.reset_config(params)

        def reset_config(self, new_config):
            self.params, self.epoch = new_config, 0
            note("started", new_config)
            return True

        def step(self):
            self.epoch += 1
            note("trained", self.params)
            ends = self.epoch == EPOCHS
            if ends:
                note("ended", self.params)
            row = {**trial(1).rows[0].model_dump(), "epoch": self.epoch - 1}
            found = value(self.params, self.epoch)
            return {search.METRIC: found, search.TIME: self.epoch, "rows": [row], "done": ends, "ended": ends}

        def save_checkpoint(self, checkpoint_dir):
            Path(checkpoint_dir, "epoch").write_text(str(self.epoch))

        def load_checkpoint(self, checkpoint_dir):
            self.epoch = int(Path(checkpoint_dir, "epoch").read_text())

    class Results(tune.Callback):
        def __init__(self):
            self.last = {}

        def on_trial_result(self, *, result, **_):
            self.last[result["config"]["trial"]] = result

    results, stopper = Results(), search.stopper(config)
    callbacks = [results, notes_of(stopper)] if notes_of else [results]
    tune.Tuner(
        tune.with_resources(LookedUp, {"cpu": cpus or ray.cluster_resources()["CPU"]}),
        param_space=search.param_space(config),
        tune_config=tune.TuneConfig(
            metric=search.METRIC,
            mode=search.MODE,
            search_alg=search.searcher(config, earlier),
            scheduler=search.scheduler(config),
            num_samples=search.num_samples(config),
            # Or Optuna is asked for the next trial before the one that runs has a result.
            max_concurrent_trials=1 if config.sweep.search == "optuna" else None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), stop=stopper, callbacks=callbacks, verbose=0),
    ).fit()
    notes = {
        name: [int(line) for line in (folder / name).read_text().split()] for name in ("started", "trained", "ended")
    }
    return SimpleNamespace(last=results.last, reason=stopper.reason, **notes)


def epochs_of(sweep):
    return [sweep.last[number][search.TIME] for number in sorted(sweep.last)]


def values_of(sweep):
    return [sweep.last[number]["config"]["values"] for number in sorted(sweep.last)]


@pytest.fixture
def no_result_files(monkeypatch):
    """Tune's own files of results stay open where a sweep is ended."""
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


@pytest.mark.usefixtures("ray_cluster", "no_result_files")
class TestExperiments:
    def test_without_a_scheduler_every_trial_runs_all_its_epochs(self, tmp_path):
        sweep = tune_sweep(config_of(trials=3), tmp_path, value=lambda params, _: -params["trial"])
        assert epochs_of(sweep) == [EPOCHS] * 3
        assert sweep.reason == ""

    def test_asha_stops_the_worse_at_its_rungs_and_nobody_at_the_last_epoch(self, tmp_path):
        # Rungs are at 2 and 4 epochs; 8 would be the next, and is the end.
        def value(params, epoch):
            return {1: 0.5, 2: 0.4, 3: 0.6 if epoch < 8 else 0.1, 4: 0.7 if epoch < 4 else 0.1}[params["trial"]]

        options = {"kind": "asha", "grace_epochs": 2, "reduction_factor": 2}
        sweep = tune_sweep(config_of(trials=4, scheduler=options), tmp_path, value=value)
        assert epochs_of(sweep) == [EPOCHS, 2, EPOCHS, 4]
        assert sweep.ended == [1, 3]

    def test_the_median_rule_waits_for_its_trials_and_epochs_and_pauses_nobody(self, tmp_path):
        options = {"kind": "median", "grace_epochs": 3, "min_trials": 2}
        config = config_of(trials=4, scheduler=options)
        sweep = tune_sweep(config, tmp_path, value=lambda params, _: -params["trial"])
        assert epochs_of(sweep) == [EPOCHS, EPOCHS, 3, 3]
        assert sweep.started == [1, 2, 3, 4]

    def test_a_budget_of_epochs_ends_the_sweep_in_the_middle_of_a_trial(self, tmp_path):
        config = config_of(trials=4, max_epochs=EPOCHS + 2)
        sweep = tune_sweep(config, tmp_path, value=lambda params, _: -params["trial"])
        assert epochs_of(sweep) == [EPOCHS, 2]
        assert sweep.reason == f"the budget of {EPOCHS + 2} epochs is spent"

    def test_optuna_goes_on_after_an_interruption_as_it_would_have_without(self, tmp_path):
        config = config_of({**RATE, "phases.0.unfreeze": [0, 1, 3]}, search="optuna", trials=13)

        def value(params, _):
            return -abs(params["values"]["phases.0.learning_rate"] - 0.003)

        whole = tune_sweep(config, tmp_path / "whole", value=value)
        assert epochs_of(whole) == [EPOCHS] * 13
        resumed = tune_sweep(config, tmp_path / "resumed", value=value, earlier=values_of(whole)[:11])
        assert values_of(resumed) == values_of(whole)

    @pytest.mark.thorough
    def test_the_worst_of_a_population_go_on_from_the_best_with_changed_values(self, tmp_path):
        options = {"kind": "pbt", "interval_epochs": 4, "quantile": 0.5}
        config = config_of({**RATE, "head.dropout": [0.0, 0.1, 0.2]}, scheduler=options, trials=4)

        sweep = tune_sweep(config, tmp_path / "first", value=_rate, cpus=0.25)
        assert epochs_of(sweep) == [EPOCHS] * 4
        # Who copies goes on from there: no epoch is trained twice.
        assert sorted(sweep.trained) == sorted([1, 2, 3, 4] * EPOCHS)
        first = [values["phases.0.learning_rate"] for values in drawn(config)]
        last = [values["phases.0.learning_rate"] for values in values_of(sweep)]
        best, worst = sorted(range(4), key=first.__getitem__)[2:], sorted(range(4), key=first.__getitem__)[:2]
        assert [last[index] for index in best] == [first[index] for index in best]
        assert not {last[index] for index in worst} & set(first)
        again = tune_sweep(config, tmp_path / "again", value=_rate, cpus=0.25)
        assert values_of(again) == values_of(sweep)

    def test_trials_that_run_when_a_budget_ends_the_sweep_take_part_with_what_they_reported(self, tmp_path):
        # Half of the trials have just been given new values, and one of all has trained an epoch since.
        options = {"kind": "pbt", "interval_epochs": 4, "quantile": 0.5}
        config = config_of(scheduler=options, trials=4, max_epochs=4 * 4 + 1, storage=str(tmp_path / "storage"))
        store = open_store(config.storage)
        dataset = store_some_digits(store)
        opened = open_sweep(store, config, dataset)
        noted = []

        def notes_of(budget):
            noted.append(Notes(opened, SweepRecords(opened), budget, {}))
            return noted[0]

        tune_sweep(config, tmp_path / "sweep", value=_rate, cpus=0.25, notes_of=notes_of)
        result = noted[0].result(seconds=1.0)
        assert [each.stopped_by for each in result.trials] == ["max_epochs"] * 4
        first = drawn(config)
        assert sorted(len(each.rows) for each in result.trials) == [4, 4, 4, 5]
        assert all(each.value == each.values["phases.0.learning_rate"] for each in result.trials)
        assert all(each.values == first[each.number - 1] for each in result.trials if len(each.rows) == 4)
        assert result.winner == max(result.trials, key=lambda each: each.value).number


def result(trial, epoch, value=0.0):
    return {"config": {"trial": trial}, search.TIME: epoch, search.METRIC: value}
