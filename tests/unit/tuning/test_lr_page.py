"""The page of a learning-rate range test shows the fall of the loss, and doubts a suggestion without one."""

import re

import numpy as np
import pytest

from transfer.tuning.lr_curve import FoundRate, RateCurve
from transfer.tuning.lr_page import rate_curve_chart, render


def found(*, fall):
    """A test in which the loss falls from 2 by so much, and diverges."""
    rates = np.geomspace(1e-7, 10, 200)
    losses = 2 - fall / (1 + np.exp(-3 * (np.log10(rates) + 3))) + np.where(rates > 1, 40 * np.log10(rates), 0)
    curve = RateCurve(rates=tuple(rates.tolist()), losses=tuple(losses.tolist()), diverged=True)
    return FoundRate(
        id="0",
        name="<b>digits",
        dataset="digits/00000001",
        base="MobileNetV2",
        phase=1,
        unfreeze=2,
        optimizer="adam",
        batch_size=32,
        curve=curve,
        suggestion=curve.steepest,
        tenth_of_minimum=curve.tenth_of_minimum,
    )


@pytest.mark.parametrize("fall", [0.1, 1.5])
def test_the_fall_takes_up_much_of_the_chart_however_far_the_loss_diverges(fall):
    svg = rate_curve_chart(found(fall=fall))
    curve = next(path for path in re.findall(r'<path d="([^"]*)"[^>]*var\(--accent\)', svg))
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", curve)]
    # Pixels count from the top: the loss begins at a small number and falls to a large one.
    assert max(heights) - heights[0] > 100
    assert "zoomed, not from 0" in svg


def test_the_verdict_names_the_phase_and_doubts_a_rate_without_a_fall():
    html = render(found(fall=1.5))
    assert "is a good start for phase 1, last 2 blocks." in html
    assert "&lt;b&gt;digits" in html
    assert "The loss hardly falls" in render(found(fall=0.01))
