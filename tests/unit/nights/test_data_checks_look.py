"""What is said of new images, given a champion that was published and a run that was opened."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.digits import digits_config
from tests.published import add_version, provenance_of
from tests.trained import build_model, train
from transfer.dataset.decisions import start_over
from transfer.dataset.ingest import ingest
from transfer.nights.data_checks import look_at_new
from transfer.nights.drift import ShardRows
from transfer.nights.drift_features import cached_features
from transfer.registry.export import export
from transfer.registry.versions import commit_version, load_version, upload_version
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.feature_plan import FeaturePlan
from transfer.training.run import open_run

PHASES = [{"unfreeze": 0, "epochs": 10, "learning_rate": 1e-2}]
BEFORE, NEW = slice(0, 24), slice(24, 36)


def write_digits(folder, which, *, look=lambda image: image, name=str):
    """Write some digits of each class: how they look, and the class that they are given.

    They are drawn from all: those that come one after the other were written by the same few people.
    """
    digits = load_digits()
    for label in range(10):
        (folder / name(label)).mkdir(parents=True, exist_ok=True)
        drawn = np.random.default_rng(label).permutation(np.flatnonzero(digits.target == label))
        for index in drawn[which]:
            image = Image.fromarray(look((digits.images[index] * 255 / 16).astype(np.uint8)))
            image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / name(label) / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """A folder with images of digits, and a storage with the champion that was trained on them, version 1."""
    folder = tmp_path_factory.mktemp("champion")
    source = write_digits(folder / "images", BEFORE)
    config = digits_config(source, str(folder / "storage"), phases=PHASES)
    store = open_store(config.storage)
    dataset = ingest(config, store)
    run = open_run(store, config, dataset)
    export(train(run, dataset), folder / "exported", provenance={})
    accuracy = Checkpoints(run).complete().progress.history[-1].validation_accuracy
    assert accuracy > 0.6
    provenance = provenance_of(run.id, dataset.reference, accuracy=accuracy)
    add_version(store, "digits", folder / "exported", classes=dataset.classes, provenance=provenance)
    return folder


def night(champion, tmp_path, *, new=NEW, look=lambda image: image, name=str, **changes):
    """Tonight's run, opened, on more digits."""
    source = shutil.copytree(champion / "images", tmp_path / "images")
    write_digits(source, new, look=look, name=name)
    storage = shutil.copytree(champion / "storage", tmp_path / "storage")
    config = digits_config(source, str(storage), **{"phases": PHASES, **changes})
    dataset = ingest(config, open_store(config.storage))
    return open_run(open_store(config.storage), config, dataset), dataset


def only(*checks):
    """The section that turns the other check off."""
    return {"checks": {check: "off" for check in ("drift", "agreement") if check not in checks}}


def looked(run, champion=1):
    findings = look_at_new(run.config, run_id=run.id, champion=champion)
    return {finding.check: finding for finding in findings}


def test_more_of_the_same_is_neither_different_nor_contradicted(champion, tmp_path):
    run, dataset = night(champion, tmp_path)
    findings = looked(run)
    assert list(findings) == ["drift", "agreement"]
    assert all(finding.passed and finding.found is not None for finding in findings.values())
    assert "120 new images" in findings["agreement"].text
    # Training finds what was computed for it here; what is missing would be an error.
    assert FeaturePlan(run, dataset, build_model(run.config, dataset.classes)).open(0) is not None


def test_images_that_look_different_have_drifted(champion, tmp_path):
    run, _ = night(champion, tmp_path, look=lambda pixels: 255 - pixels, nightly=only("drift"))
    findings = looked(run)
    assert list(findings) == ["drift"]
    assert findings["drift"].found > 0.9


def test_labels_that_were_mixed_up_are_contradicted(champion, tmp_path):
    run, _ = night(champion, tmp_path, name=lambda label: str((label + 1) % 10), nightly=only("agreement"))
    findings = looked(run)
    assert list(findings) == ["agreement"]
    assert not findings["agreement"].passed
    assert not run.inputs.numbers(), "nothing was computed for features that nobody asked for"


def test_images_of_a_new_class_are_not_asked_about(champion, tmp_path):
    names = ["0", "1", *["unheard of"] * 8]
    run, _ = night(champion, tmp_path, name=names.__getitem__, nightly=only("agreement"))
    findings = looked(run)
    assert "24 new images" in findings["agreement"].text
    assert findings["agreement"].passed


def test_images_of_a_renamed_class_are_asked_about_by_its_new_name(champion, tmp_path):
    run, dataset = night(champion, tmp_path, nightly=only("agreement"))
    # All classes get new indices, so names decide which class of the champion is which.
    start_over(run.store, dataset.name, reason="a test")
    source = {"source": str(tmp_path / "images"), "validation": 0.2, "test": 0.2, "rename_classes": {"0": "zero"}}
    config = digits_config(
        tmp_path, str(tmp_path / "storage"), phases=PHASES, nightly=only("agreement"), dataset=source
    )
    renamed = ingest(config, run.store)
    assert renamed.classes[-1] == "zero"
    (finding,) = look_at_new(config, run_id=open_run(run.store, config, renamed).id, champion=1)
    assert "120 new images" in finding.text
    assert finding.passed


def test_images_of_a_class_that_the_champion_never_answers_are_not_asked_about(champion, tmp_path):
    run, _ = night(champion, tmp_path, nightly=only("agreement"))
    first = load_version(run.store, "digits", 1)
    untrained = {"classes": first.classes, "untrained_classes": ["3", "8"], "provenance": first.provenance}
    commit_version(run.store, upload_version(run.store, "digits", champion / "exported", **untrained))
    assert "96 new images" in looked(run, champion=2)["agreement"].text


def test_without_cached_features_nothing_is_said_of_drift(champion, tmp_path):
    run, _ = night(champion, tmp_path, features="never", nightly=only("drift"))
    finding = looked(run)["drift"]
    assert (finding.found, finding.passed) == (None, True)
    assert "No phase has cached features" in finding.text


def test_a_handful_of_new_images_is_not_looked_at(champion, tmp_path):
    run, _ = night(champion, tmp_path, new=slice(24, 25))
    findings = looked(run)
    assert [finding.found for finding in findings.values()] == [None, None]
    assert all("There are 10 new images; the check needs at least 20" in finding.text for finding in findings.values())


def test_without_a_champion_there_is_nothing_to_look_at(champion, tmp_path):
    run, _ = night(champion, tmp_path, new=BEFORE)
    assert [finding.found for finding in looked(run, champion=None).values()] == [None, None]


def test_what_is_off_is_not_done(champion, tmp_path):
    run, _ = night(champion, tmp_path, nightly=only())
    assert looked(run) == {}


def test_maps_are_averaged_over_their_places(champion, tmp_path):
    run, dataset = night(champion, tmp_path, new=BEFORE, phases=[{**PHASES[0], "unfreeze": 1}], features="always")
    (shard,) = dataset.shards_of("train")
    rows = np.array([3, 0, 7])
    ((features, labels),) = cached_features(run, dataset, [[ShardRows(shard, rows)]])
    kept = FeaturePlan(run, dataset, build_model(run.config, dataset.classes)).open(0).train[0]
    maps = np.empty((3, *kept.shape), kept.dtype)
    kept.take(rows, maps)
    assert maps.ndim == 4
    np.testing.assert_allclose(features, maps.mean(axis=(1, 2)), rtol=1e-5)
    assert labels.tolist() == kept.labels[rows].tolist()
