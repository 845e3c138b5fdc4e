"""The tables of the documentation are what their scripts give, and the scripts are right."""

import numpy as np
import pytest

from scripts import generate_docs
from scripts.tables import DOCS, held_out, networks, with_table
from transfer.evaluation.metrics import bootstrap_interval, mcnemar


def nights(count, *, images, difference, differing):
    """How many images were gained and lost in each of some nights."""
    gained = (differing + difference) / 2
    shares = [gained, differing - gained, 1 - differing]
    return np.random.default_rng(0).multinomial(images, shares, size=count)[:, :2].tolist()


@pytest.mark.parametrize("page", ["little_data.md", "storage.md"])
def test_a_page_has_what_its_script_gives(page):
    assert (DOCS / page).read_text() == generate_docs.pages()[page]


def test_the_page_on_training_has_every_exit_code():
    assert (DOCS / "train.md").read_text() == generate_docs.pages()["train.md"]


@pytest.mark.parametrize("images", [100, 500])
def test_so_many_nights_pass_the_gate_that_asks_for_better(images):
    case = {"images": images, "difference": 0.02, "differing": 0.06}
    passed = np.mean([mcnemar(*night) <= 0.05 for night in nights(2000, **case)])
    assert passed == pytest.approx(held_out.better(**case), abs=0.03)


def test_so_many_nights_pass_the_gate_that_asks_for_not_worse():
    images, margin, differing = 500, 0.02, 0.12
    passed = []
    for gained, lost in nights(400, images=images, difference=0, differing=differing):
        interval = bootstrap_interval(gained, lost, images=images, confidence=0.95, seed=0)
        passed.append(interval.low >= -margin)
    assert np.mean(passed) == pytest.approx(held_out.not_worse(images, margin=margin, differing=differing), abs=0.08)


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_the_page_on_networks_has_what_the_installed_keras_builds(name):
    assert f"| {' | '.join(networks.row_of(name))} |\n" in networks.PAGE.read_text()


@pytest.mark.thorough
def test_the_page_on_networks_has_every_network():
    page = networks.PAGE.read_text()
    assert page == with_table(page, "networks", networks.table())
