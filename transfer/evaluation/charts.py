"""Charts of the report, as SVG: training curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer.catalog.run import EpochRow
from transfer.reports.figures import (
    INK,
    LINE,
    MUTED,
    ON_COLOR,
    RIGHT,
    TRAINING,
    WRONG,
    begin_at_zero,
    name_axes,
    new_figure,
    printable,
    scale_by_powers,
    to_svg,
)
from transfer.runtime.numbers import percent_tick

# Up to this many classes the confusion matrix has every cell and every class name.
MAX_NAMED_CLASSES = 30
_MAX_COUNTED_CLASSES = 20
_MAX_LABEL_LENGTH = 18

# Pixels of the large heat map cannot use CSS variables; these two colors are visible on white and on near-black.
_RIGHT_PIXEL, _WRONG_PIXEL = (0.25, 0.50, 0.91), (0.90, 0.38, 0.14)


Titles = Mapping[int, str]
"""What each phase trains, in words, by number of the phase."""


def loss_chart(history: Sequence[EpochRow], titles: Titles) -> str:
    """Draw the loss of each epoch on training and validation images, as SVG."""
    return _curves("loss", history, titles, lambda row: row.loss, lambda row: row.validation_loss, _from_zero)


def accuracy_chart(history: Sequence[EpochRow], titles: Titles) -> str:
    """Draw the accuracy of each epoch on training and validation images, as SVG."""

    def as_percent(axes: Axes, values: list[float]) -> None:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_tick(value)))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.03 * (1.0 - axes.get_ylim()[0])))
        _from_zero(axes, values)

    return _curves(
        "accuracy", history, titles, lambda row: row.accuracy, lambda row: row.validation_accuracy, as_percent
    )


def learning_rate_chart(history: Sequence[EpochRow], titles: Titles) -> str:
    """Draw the learning rate at the end of each epoch, as SVG, on a logarithmic axis; a rate of 0 is drawn below it."""

    def scale(axes: Axes, rates: list[float]) -> None:
        above = [rate for rate in rates if rate > 0]
        if above:
            low, high = min(above), max(above)
            scale_by_powers(axes, "y", low, high)
            margin = max((high / low) ** 0.06, 1.25)
            axes.set_ylim(low / margin, high * margin)

    return _curves("learning-rate", history, titles, lambda row: row.learning_rate, lambda _: None, scale)


def confusion_chart(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draw the confusion matrix (rows: truth) as SVG, shaded by the share of each class's images.

    Up to 30 classes are named. With more, the matrix is a picture with one pixel for each cell and class indices.
    """
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(classes) > MAX_NAMED_CLASSES:
        return _compact_matrix(shares)
    return _named_matrix(counts, shares, [printable(name, length=_MAX_LABEL_LENGTH) for name in classes])


def _from_zero(axes: Axes, values: list[float]) -> None:
    begin_at_zero(axes, values, x_px=-46, y_px=-30)


def _curves(
    name: str,
    history: Sequence[EpochRow],
    titles: Titles,
    training: Callable[[EpochRow], float],
    validation: Callable[[EpochRow], float | None],
    adjust: Callable[[Axes, list[float]], None],
) -> str:
    figure, axes = new_figure(width=330, height=210, left=48, right=8, top=24, bottom=36)
    epochs = [row.epoch + 1 for row in history]
    _mark_phases(axes, history, titles)
    marker = "o" if len(epochs) <= 30 else ""
    style: dict[str, Any] = {"marker": marker, "markersize": 4, "linewidth": 1.8, "clip_on": False}
    trained = [training(row) for row in history]
    validated = [(row.epoch + 1, value) for row in history if (value := validation(row)) is not None]
    axes.plot(epochs, trained, color=TRAINING, **style)
    if validated:
        axes.plot(*zip(*validated, strict=True), color=RIGHT, **style)
    axes.set_xlim(0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("epoch", color=MUTED, labelpad=3, fontsize=11)
    axes.grid(axis="y", color=LINE, linewidth=1)
    adjust(axes, [*trained, *(value for _, value in validated)])
    return to_svg(figure, name)


def _mark_phases(axes: Axes, history: Sequence[EpochRow], titles: Titles) -> None:
    starts = [
        row for before, row in zip((None, *history), history, strict=False) if not before or before.phase != row.phase
    ]
    if len(starts) == 1:
        return
    above = axes.get_xaxis_transform()
    pixels_per_epoch = axes.bbox.width / (history[-1].epoch + 1)
    ends = [*(start.epoch for start in starts[1:]), history[-1].epoch + 1]
    for start, end in zip(starts, ends, strict=True):
        edge = start.epoch + 0.5
        room = (end - start.epoch) * pixels_per_epoch
        # The name of a layer comes from the user: `$` in it does not begin a formula.
        names = [printable(titles.get(start.phase, f"phase {start.phase}"), length=24), f"{start.phase}"]
        label = next((f" {name}" for name in names if 6 * (len(name) + 1) < room), "")
        if start is not starts[0]:
            axes.axvline(edge, color=MUTED, linewidth=1, dashes=(2, 3))
        axes.text(edge, 1.03, label, color=MUTED, transform=above, fontsize=10, parse_math=False)


def _named_matrix(counts: np.ndarray, shares: np.ndarray, names: list[str]) -> str:
    size = len(names)
    cell = float(np.clip(450 / size, 22, 84))
    # Leave room for wide fonts: the browser chooses the font.
    longest = max(40.0, 6.6 * max(len(name) for name in names))
    upright = longest < cell
    left, bottom = 14 + longest, 44 if upright else 34 + longest
    figure, axes = new_figure(
        width=left + size * cell + 6, height=24 + size * cell + bottom, left=left, right=6, top=24, bottom=bottom
    )
    for truth, predicted in np.argwhere(counts == 0):
        axes.add_patch(Rectangle((predicted - 0.47, truth - 0.47), 0.94, 0.94, facecolor=LINE, alpha=0.35, linewidth=0))
    for truth, predicted in np.argwhere(counts):
        share = shares[truth, predicted]
        color = RIGHT if truth == predicted else WRONG
        # The root keeps a single confusion among hundreds of images visible.
        strength = 0.14 + 0.78 * np.sqrt(share)
        box = (predicted - 0.47, truth - 0.47)
        axes.add_patch(Rectangle(box, 0.94, 0.94, facecolor=color, alpha=round(float(strength), 3), linewidth=0))
        if size <= _MAX_COUNTED_CLASSES:
            ink = ON_COLOR if strength > 0.6 else INK
            where: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
            axes.text(predicted, truth, f"{counts[truth, predicted]:,}", color=ink, fontsize=11, **where)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    # Class names come from the user: `$` in them does not begin a formula.
    axes.set_xticks(range(size), names, rotation=0 if upright else 90, parse_math=False, color=INK)
    axes.set_yticks(range(size), names, parse_math=False, color=INK)
    name_axes(axes, "predicted", "")
    corner: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate("truth ↓", (0, 1), xytext=(-6, 8), ha="right", color=MUTED, fontsize=11, **corner)
    return to_svg(figure, "confusion")


def _compact_matrix(shares: np.ndarray) -> str:
    figure, axes = new_figure(width=520, height=520, left=52, right=8, top=8, bottom=52)
    pixels = np.zeros((*shares.shape, 4))
    pixels[..., :3] = _WRONG_PIXEL
    np.einsum("iij->ij", pixels)[:, :3] = _RIGHT_PIXEL
    pixels[..., 3] = np.where(shares > 0, 0.45 + 0.55 * np.sqrt(shares), 0)
    axes.imshow(pixels, interpolation="none", aspect="auto")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    for side in axes.spines.values():
        side.set_visible(True)
    name_axes(axes, "predicted class, by index", "true class, by index")
    return to_svg(figure, "confusion")
