"""Keeping or computing again, decided from what was measured."""

import pytest

from transfer.activations.choice import Rates, choose, smaller_than_images
from transfer.dataset.manifest import Shard

RATES = Rates(decode_images_per_s=1000, forward_images_per_s=100, write_bytes_per_s=100e6, read_bytes_per_s=500e6)
VECTOR = {"row_bytes": 5_120, "flops_share": 1.0}
EARLY_MAP = {"row_bytes": 4_800_000, "flops_share": 0.02}
CASE = {"images": 1000, "missing": 1000, "epochs": 10}


def test_what_is_smaller_than_the_images_is_kept_without_measuring():
    shards = [
        Shard(name=n, sha256=n, split="train", rows=10, size_bytes=size) for n, size in (("a", 80_000), ("b", 120_000))
    ]
    assert smaller_than_images(10_000, shards).reason == "9.77 KiB an image, and the image itself has 9.77 KiB"
    assert smaller_than_images(10_001, shards) is None


def test_vectors_are_kept():
    assert choose(rates=RATES, **VECTOR, **CASE).kept


def test_large_maps_behind_little_work_are_not():
    assert not choose(rates=RATES, **EARLY_MAP, **CASE).kept


def test_even_one_epoch_repays_keeping_vectors_for_later_runs():
    assert choose(rates=RATES, **VECTOR, **{**CASE, "epochs": 1}).kept


def test_slow_storage_tips_the_balance():
    middle_map = {"row_bytes": 450_000, "flops_share": 0.6}
    slow = RATES.model_copy(update={"write_bytes_per_s": 5e6, "read_bytes_per_s": 10e6})
    assert choose(rates=RATES, **middle_map, **CASE).kept
    assert not choose(rates=slow, **middle_map, **CASE).kept


def test_what_is_kept_already_need_not_be_paid_for_again():
    heavy = {"row_bytes": 1_000_000, "flops_share": 0.2}
    assert not choose(rates=RATES, **heavy, **{**CASE, "epochs": 2}).kept
    assert choose(rates=RATES, **heavy, **{**CASE, "epochs": 2, "missing": 10}).kept


def test_the_reason_gives_size_and_both_times():
    choice = choose(rates=RATES, **VECTOR, **CASE)
    # By the formula: 1000 · (1/1000 + 1/100 + 5120/100e6) + 10 · 1000 · 5120/500e6, and 10 · 1000 · (1/1000 + 1/100).
    assert choice.reason == (
        "4.88 MiB for 1,000 images, about 11.2 s to keep and 110.0 s to compute in each of 10 epochs"
    )
    assert choice.rates == RATES


@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_more_epochs_never_make_recomputing_better(epochs):
    kept = [
        choose(rates=RATES, row_bytes=700_000, flops_share=0.3, images=100, missing=100, epochs=e).kept
        for e in (epochs, epochs + 1)
    ]
    assert kept in ([False, False], [False, True], [True, True])
