"""A base with random weights: its BatchNorms begin with statistics of training images, and are trained."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, from_scratch, ingest_some_digits
from tests.replicas import two_replicas
from tests.trained import largest_difference, plain_logits, train
from transfer.backbone import random_start
from transfer.backbone.batch_norms import statistics_of
from transfer.backbone.load import build_backbone
from transfer.config import PhaseConfig
from transfer.errors import BaseChangedError
from transfer.storage import open_store, put_document
from transfer.training.checkpoints import Checkpoints
from transfer.training.inference import trace_inference
from transfer.training.run import open_run, pinned_base
from transfer.training.shared_models import SharedModels, restore_model, untrained_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits in storage, and the section `base`."""
    folder = tmp_path_factory.mktemp("digits")
    return *ingest_some_digits(folder), from_scratch(folder / "network.keras")


def new_run(digits, run_id, *, epochs=20, **changes):
    source, dataset, base = digits
    phases = [{"unfreeze": "all", "epochs": epochs, "learning_rate": 1e-2, "schedule": {"kind": "cosine"}}]
    config = digits_config(source, str(source.parent / "storage"), **{"base": base, "phases": phases, **changes})
    return open_run(open_store(config.storage), config, dataset, run_id=run_id), dataset


def test_it_learns_from_scratch_and_what_is_served_is_what_was_trained(digits):
    run, dataset = new_run(digits, "learns")
    before = untrained_model(run, dataset)
    start = [np.asarray(each) for each in statistics_of(before.backbone.network)]
    train(run, dataset)
    end = Checkpoints(run).complete()
    assert end.progress.history[-1].validation_accuracy > 0.7

    model, _ = restore_model(run, dataset)
    variables = model.variables_of([PhaseConfig(unfreeze="all")])
    assert len(statistics_of(model.backbone.network)) == 6
    assert largest_difference([np.asarray(each) for each in variables], end.weights) == 0
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    expected = tf.nn.softmax(plain_logits(model, images))
    for graph in ("merged", "plain"):
        answers = trace_inference(model, graph=graph).answer(tf.constant(images))
        assert largest_difference([answers.numpy()], [expected.numpy()]) < 1e-5
    # Whoever comes next begins at the beginning.
    after = untrained_model(run, dataset)
    assert largest_difference([np.asarray(each) for each in statistics_of(after.backbone.network)], start) == 0
    assert after.backbone.digest() == before.digest == pinned_base(run)


@pytest.mark.proof
def test_interrupted_and_resumed_it_is_uninterrupted_and_two_replicas_are_one(digits):
    training = {"batch_size": 16, "checkpoint_steps": 3}
    whole, dataset = new_run(digits, "whole", epochs=2, training=training)
    train(whole, dataset)
    expected = Checkpoints(whole).complete().weights
    numbers = Checkpoints(whole).numbers()
    starts = [Checkpoints(whole).read(number) for number in numbers[:-1]]
    start = next(each for each in starts if each.progress.epoch == 1 and each.progress.step > 0)
    cut, dataset = new_run(digits, "cut", epochs=2, training=training)
    train(cut, dataset, start=start, strategy=two_replicas())
    assert largest_difference(Checkpoints(cut).complete().weights, expected) < 1e-5


def test_frozen_it_has_statistics_of_training_images_which_are_stored_and_found_again(digits, monkeypatch):
    run, dataset = new_run(digits, "frozen")
    model = untrained_model(run, dataset)
    assert model.digest != build_backbone(run.config).digest()
    network = model.backbone.network
    images = random_start.sample(model.backbone, run.store, random_start.shards_of_sample(dataset))
    assert len(images) == random_start.IMAGES
    last = keras.Model(network.inputs[0], network.get_layer("block_2_norm").output)
    answers = last(model.backbone.preprocess(images), training=False).numpy()
    np.testing.assert_allclose(answers.mean(axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(answers.std(axis=(0, 1, 2)), 1, atol=0.05)

    monkeypatch.setattr(random_start, "estimate_statistics", None)
    again = SharedModels(tf.distribute.get_strategy()).model(run.config, run.store, dataset)
    assert again.digest == model.digest


def test_a_run_that_an_earlier_release_began_is_not_gone_on_with(digits):
    run, dataset = new_run(digits, "earlier")
    start = Path(run.store.uri, run.folder, "run.json")
    assert json.loads(start.read_text())["document"]["identity"]["base"]["weights"] != "none"
    run.store.remove(f"{run.folder}/run.json")
    document = {
        "identity": {"base": {"model": run.config.base.model, "weights": "none"}},
        "config": run.config.model_dump(mode="json"),
        "dataset": {"name": dataset.name, "number": dataset.number},
    }
    put_document(run.store, f"{run.folder}/run.json", document)
    run.base.append({"sha256": build_backbone(run.config).digest(), "keras": keras.__version__}, number=1)
    with pytest.raises(BaseChangedError, match="BatchNorms of random weights had no statistics"):
        untrained_model(run, dataset)
