"""The life of a model, with a server that reads all along: at no moment does anything serve that was not chosen."""

import shutil
from pathlib import Path

from tests.fortnight import Fortnight
from tests.published import PollingServer
from transfer import jobs
from transfer.catalog import layout
from transfer.cli import summary
from transfer.registry.describe import refusals_of
from transfer.registry.promote import roll_back
from transfer.registry.versions import list_versions


def test_nothing_serves_that_was_not_chosen(tmp_path):
    it = Fortnight(tmp_path)
    it.add(range(4), slice(0, 40))
    worse = it.config(learning_rate=1e-6, epochs=1)

    def with_policy(promote):
        return worse.model_copy(update={"publish": worse.publish.model_copy(update={"promote": promote})})

    with PollingServer(Path(it.storage, layout.serving_folder("digits"))) as server:
        assert jobs.train(it.config()).choice.promoted
        # A worse one waits; the gate says why, and the report has the two beside each other.
        waiting = jobs.train(with_policy("gate"))
        assert (waiting.version.number, waiting.choice.promoted, waiting.choice.serving.version) == (2, False, 1)
        assert "Version 2 waits: the gate refuses it. The challenger alone is right for" in waiting.choice.why
        assert [refusal.evidence["run"] for refusal in refusals_of(it.store, waiting.version)] == [waiting.run.id]
        assert waiting.report.serving.lost > waiting.report.serving.gained
        # Somebody has it serve all the same, and goes back.
        assert roll_back(it.store, "digits", to=2, reason="to try it").changed
        roll_back(it.store, "digits", reason="2 is bad")
        # The same job again does not go against that, whatever it is told.
        repeated = jobs.train(with_policy("always"))
        assert (repeated.version, repeated.choice.promoted) == (waiting.version, False)
        assert "Version 1 serves since" in repeated.choice.why
        # Nor does a night, whose gate would take anything.
        lenient = {"require": "not_worse", "margin": 0.99, "max_class_drop": None}
        night = it.night(learning_rate=1e-6, epochs=1, gate=lenient)
        assert (night.outcome, night.champion, night.challenger) == ("kept", 1, 2)
        assert "Promotion 3 decided what serves after version 2" in night.reason

    versions = {version.number: version for version in list_versions(it.store, "digits")}
    files = {
        number: {file.name: it.store.read(f"{version.folder}/{file.name}") for file in version.files}
        for number, version in versions.items()
    }
    assert sorted(files) == [1, 2]
    # All began with the same base, and each ended with weights of its own.
    assert len({version.provenance.base.sha256 for version in versions.values()}) == 1
    assert len({version.provenance.weights.sha256 for version in versions.values()}) == 2
    assert server.served == {1: [files[1]], 2: [files[2]], 3: [files[1]]}

    # A run on a later dataset version is set beside what serves on its own held-out images.
    it.add(range(4), slice(40, 50))
    grown = jobs.train(worse)
    beside = grown.report.serving
    assert (grown.dataset.number, grown.choice.promoted, beside.version) == (2, False, 1)
    assert (beside.dataset, beside.images) == (grown.dataset.reference, grown.dataset.rows("test"))
    assert beside.lost > beside.gained
    assert beside.text in summary.for_people(grown).values()

    # What a job that died had promoted and not copied for servers, the next night copies.
    copy = Path(it.storage, layout.serving_folder("digits"), "00000003")
    shutil.rmtree(copy)
    it.night(learning_rate=1e-6, epochs=1, gate=lenient)
    assert (copy / "saved_model.pb").exists()
