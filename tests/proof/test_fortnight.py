"""Two weeks of nights on real digits: growing data, an empty night, poison, a new class, a kill, a rollback."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.fortnight import Fortnight
from transfer.errors import NightBusyError
from transfer.nights.records import list_nights, work_on_night
from transfer.registry.promote import roll_back
from transfer.registry.versions import list_versions, promotions_log
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run


@pytest.fixture(scope="module")
def fortnight(tmp_path_factory):
    return Fortnight(tmp_path_factory.mktemp("fortnight"))


def failed_rules(night):
    return {rule.name for rule in night.decision.rules if not rule.passed}


def failed_checks(night):
    return {finding.check for finding in night.findings if not finding.passed}


# Seven models are trained, published and compared.
@pytest.mark.timeout(1800)
def test_a_fortnight(fortnight):
    week(fortnight)
    poison(fortnight)
    new_class(fortnight)
    killed(fortnight)
    worse_and_rolled_back(fortnight)
    lost_images(fortnight)


def week(it):
    """The first model, a night without anything new, and one whose data makes a better model."""
    it.add(range(8), slice(0, 12))
    first = it.night()
    assert (first.outcome, first.champion, first.challenger, it.serving) == ("promoted", None, 1, 1)

    assert it.night().outcome == "nothing new"

    before = it.dataset
    it.add(range(8), slice(12, 70))
    grown = it.night()
    assert (grown.outcome, grown.champion, it.serving) == ("promoted", 1, 2)
    assert {shard.name for shard in before.shards} < {shard.name for shard in it.dataset.shards}
    assert (grown.change.new, grown.change.gone) == (8 * 58, 0)
    assert grown.comparison.gained > grown.comparison.lost
    assert grown.comparison.p_value < 0.05
    evidence = promotions_log(it.store, "digits").latest()[1]["evidence"]
    assert evidence["night"] == grown.night
    assert [rule["name"] for rule in evidence["rules"]] == [rule.name for rule in grown.decision.rules]


def poison(it):
    """New images under wrong labels: warned of, and the model that learned them does not serve; then refused."""

    def shifted(label):
        return (label + 1) % 8

    it.add(range(8), slice(70, 100), shown_as=shifted)
    poisoned = it.night()
    assert poisoned.outcome == "kept"
    assert "agreement" in failed_checks(poisoned)
    assert "better" in failed_rules(poisoned)
    assert it.serving == 2

    refused = it.night(checks={"agreement": "refuse"})
    assert (refused.outcome, refused.challenger) == ("refused", None)
    assert it.command(checks={"agreement": "refuse"}) == 11
    assert next(list_nights(it.store, "digits")).number == refused.night + 1
    it.remove(range(8), slice(70, 100), shown_as=shifted)


def new_class(it):
    """It gets the next index, and the champion, which does not know it, is judged on the others too."""
    it.add([8], slice(0, 60))
    night = it.night(warm_start="champion")
    assert night.outcome == "promoted"
    assert it.dataset.classes == [str(label) for label in range(9)]
    recall = {each.name: each for each in night.comparison.classes}
    assert recall["8"].champion is None
    assert recall["8"].challenger > 0.5
    assert it.serving == night.challenger


def killed(it):
    """A run that is killed goes on, in the same night."""
    it.add(range(9), slice(100, 115))
    options = {"epochs": 60, "learning_rate": 3e-3, "gate": {"require": "not_worse", "margin": 0.02}}
    config = it.config(**options)
    file = it.file(config)
    known = {name.name for name in it.store.list("runs/")}
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.nightly", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as job:
        while not (new := checkpoints_of(it.store, known)):
            assert job.poll() is None, job.stdout.read().decode()
            # Each look goes through all of storage, and the job wants the processor.
            time.sleep(0.3)
        with pytest.raises(NightBusyError, match=f"process {job.pid} on"), work_on_night(it.store, config):
            pass
        assert it.command(**options) == 10
        job.send_signal(signal.SIGKILL)
        job.communicate()
    interrupted = next(iter(list_nights(it.store, "digits")))
    assert interrupted.end() is None
    night = it.night(**options)
    assert night.night == interrupted.number
    assert new.pop().split("/")[1] == night.run
    rows = Checkpoints(load_run(it.store, night.run, config)).complete().progress.history
    assert [row.epoch for row in rows] == list(range(60))
    # What the killed process had trained was not trained again: no epoch has two checkpoints.
    assert Checkpoints(load_run(it.store, night.run, config)).numbers()[-1] == 60
    assert night.outcome == "promoted"


def checkpoints_of(store, known):
    return {item.name for item in store.list("runs/") if item.name not in known and "/checkpoints/" in item.name}


def worse_and_rolled_back(it):
    """A worse challenger changes nothing; what was rolled back does not come back until something is new."""
    serving = it.serving
    worse = it.night(learning_rate=1e-7, epochs=1, gate={"min_accuracy": 0.5})
    assert worse.outcome == "kept"
    assert {"better", "min_accuracy"} <= failed_rules(worse)
    assert it.serving == serving

    roll_back(it.store, "digits", reason="it confused people")
    assert it.serving != serving
    options = {"epochs": 60, "learning_rate": 3e-3, "gate": {"require": "not_worse", "margin": 0.02}}
    after = it.night(**options)
    assert (after.outcome, after.champion) == ("nothing new", it.serving)
    assert it.serving != serving
    assert len(list(list_versions(it.store, "digits"))) == max(worse.challenger, serving)


def lost_images(it):
    """A class or a good part of the images that are gone end the night before training."""
    shutil.move(it.source / "0", it.source.parent / "elsewhere")
    vanished = it.night()
    assert vanished.outcome == "refused"
    assert "vanished" in failed_checks(vanished)
    shutil.move(it.source.parent / "elsewhere", it.source / "0")
    it.remove(range(8), slice(0, 40))
    fewer = it.night()
    assert fewer.outcome == "refused"
    assert failed_checks(fewer) == {"volume"}
