"""Axes that are honest, and have round numbers."""

import pytest

from transfer.reports.figures import begin_at_zero, log_ticks, new_figure


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-3, 1e-2, [1e-3, 2e-3, 5e-3, 1e-2]),
        (1e-4, 1e-1, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        (1e-7, 10, [1e-7, 1e-5, 1e-3, 1e-1, 1e1]),
        (6e-4, 7e-4, [6e-4, 7e-4]),
        (1e-3, 1e-3, [1e-3]),
        (9e-4, 1.1e-3, [9e-4, 1.1e-3]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_few_and_round(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(("values", "is_zoomed"), [([0.5, 0.9], False), ([0.8, 0.9], True), ([0.0, 0.0], False)])
def test_an_axis_begins_at_zero_or_is_marked(values, is_zoomed):
    _, axes = new_figure(width=300, height=200, left=40, right=8, top=8, bottom=30)
    axes.plot(values)
    begin_at_zero(axes, values, x_px=0, y_px=0)
    assert (axes.get_ylim()[0] > 0) == is_zoomed
    assert bool(axes.texts) == is_zoomed
