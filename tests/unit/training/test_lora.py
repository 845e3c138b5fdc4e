"""Adapters: what they compute, what a run of phases with and without them leaves, and that trials share a network."""

import numpy as np
import pytest
import tensorflow as tf

from tests.attention import attention_network, on_attention
from tests.digits import digits_config, ingest_some_digits
from tests.trained import largest_difference, plain_logits, train
from transfer.backbone.projections import projections_in
from transfer.config import LoraConfig
from transfer.errors import BackboneError
from transfer.network_check import check_network
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.lora import build_adapters, call_adapted, penalties
from transfer.training.run import open_run
from transfer.training.shared_models import restore_model

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
LAST_BLOCK = {"unfreeze": 1, "epochs": 1, "learning_rate": 1e-2}
PHASES = [
    {**LAST_BLOCK, "lora": {"rank": 2}},
    {**LAST_BLOCK, "unfreeze": 2, "lora": {"rank": 3, "targets": "all"}},
    LAST_BLOCK,
]


def test_adapters_begin_as_no_difference_and_merged_compute_what_they_did_before():
    network = attention_network()
    network.get_layer("block_1_wide").kernel.regularizer = lambda kernel: 0.5 * tf.reduce_sum(kernel**2)
    adapters = build_adapters(projections_in(network.layers), LoraConfig(rank=2, alpha=6))
    for place, adapter in enumerate(adapters):
        adapter.start([0, place])
    before = network(IMAGES / 255)
    assert largest_difference([call_adapted(network, IMAGES / 255, adapters)], [before]) == 0
    for adapter in adapters:
        adapter.up.assign(np.random.default_rng(1).normal(size=adapter.up.shape))
    adapted = call_adapted(network, IMAGES / 255, adapters)
    assert largest_difference([network(IMAGES / 255)], [before]) == 0, "the network itself has not changed"
    (penalty,) = penalties(adapters)
    query = next(adapter for adapter in adapters if adapter.target.name == "block_0_mixing/query")
    by_hand = query.target.kernel + 6 / 2 * np.einsum("ir,rhd->ihd", query.down, np.reshape(query.up, (2, 2, 3)))
    for adapter in adapters:
        adapter.merge()
    assert largest_difference([network(IMAGES / 255)], [adapted]) < 1e-5 * np.abs(adapted).max()
    assert largest_difference([query.target.kernel], [by_hand]) < 1e-5
    assert float(penalty) == pytest.approx(0.5 * np.sum(network.get_layer("block_1_wide").kernel ** 2), rel=1e-5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    source, dataset = ingest_some_digits(tmp_path_factory.mktemp("digits"))
    return digits_config(source, str(source.parent / "storage")), dataset, source.parent


def new_run(digits, run_id, phases=PHASES):
    config, dataset, folder = digits
    config = on_attention(config, folder, phases)
    return open_run(open_store(config.storage), config, dataset, run_id=run_id), dataset


@pytest.fixture(scope="module")
def whole(digits):
    """A run of three phases, and the logits with which it ended."""
    run, dataset = new_run(digits, "whole")
    model = train(run, dataset)
    return run, plain_logits(model, IMAGES).numpy()


def test_checkpoints_hold_the_adapters_and_what_phases_train_whole(whole):
    (run, _) = whole
    shapes = [array.shape for array in Checkpoints(run).complete().weights]
    attention = [(8, 2), (2, 6)] * 3 + [(6, 2), (2, 8)]
    both = [(8, 3), (3, 6)] * 3 + [(6, 3), (3, 8), (8, 3), (3, 16), (16, 3), (3, 8)]
    assert shapes[: 3 * 8 + 2 * 4] == [*attention, *both, *both]
    last_block = [weight for weight in attention_network().weights if "block_1" in weight.path]
    assert shapes[3 * 8 + 2 * 4 :] == [*(tuple(weight.shape) for weight in last_block), (8, 10), (10,)]


def test_what_adapters_changed_is_not_cached_as_frozen(whole):
    reasons = [choice["reason"] for choice in whole[0].inputs.read(1)["phases"]]
    assert "trained by an earlier phase" in reasons[2]
    assert not any("trained by an earlier phase" in reason for reason in reasons[:2])


def test_resumed_and_restored_it_is_the_run_that_was_not_interrupted(digits, whole):
    expected = Checkpoints(whole[0]).complete().weights
    run, dataset = new_run(digits, "resumed-after-two-phases")
    model = train(run, dataset, start=Checkpoints(whole[0]).read(2))
    assert largest_difference(Checkpoints(run).complete().weights, expected) < 1e-6
    assert largest_difference([plain_logits(model, IMAGES)], [whole[1]]) < 1e-5
    restored, _ = restore_model(whole[0], digits[1])
    assert largest_difference([plain_logits(restored, IMAGES)], [whole[1]]) < 1e-5
    again, _ = restore_model(whole[0], digits[1])
    assert largest_difference([plain_logits(again, IMAGES)], [whole[1]]) < 1e-5, "merged once, not twice"


@pytest.mark.usefixtures("whole")
def test_a_phase_changes_only_the_kernels_that_it_means(digits):
    """Also on a network of which another run has trained a block whole."""
    run, dataset = new_run(digits, "attention-alone", [{**LAST_BLOCK, "lora": {"rank": 5}}])
    pretrained = {weight.path: weight.numpy() for weight in attention_network().weights}
    model = train(run, dataset)
    now = {weight.path: weight.numpy() for weight in model.backbone.network.weights}
    changed = {path for path, value in now.items() if np.abs(value - pretrained[path]).max() > 0}
    projections = {"query", "key", "value", "attention_output"}
    assert changed == {f"block_1_mixing/{name}/kernel" for name in projections}


def test_config_check_counts_adapters_and_refuses_phases_without_targets(digits):
    config, _, folder = digits
    facts = check_network(on_attention(config, folder, PHASES), searched={}, classes=list("0123456789"))
    # Four kernels in attention, of 8 × 6 or 6 × 8; with two of 8 × 16 or 16 × 8, in two blocks; one block as it is.
    whole_block = sum(weight.numpy().size for weight in attention_network().weights if "block_1" in weight.path)
    assert facts.trained == (2 * 4 * 14, 3 * 2 * (4 * 14 + 2 * 24), whole_block)
    narrow = on_attention(config, folder, [{**PHASES[0], "unfreeze": "block_1_narrow"}])
    with pytest.raises(BackboneError, match=r"phases\.0: lora\.targets is `attention`.*`block_1_wide`"):
        check_network(narrow, searched={}, classes=None)
    searched = {"phases.0.lora.targets": narrow.phases}
    with pytest.raises(BackboneError, match=r"sweep\.space\.phases\.0\.lora\.targets: lora\.targets is"):
        check_network(on_attention(config, folder, PHASES), searched=searched, classes=None)
