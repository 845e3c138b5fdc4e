"""The report's charts: matplotlib figures as inline SVG that takes its colors from the page.

Figures are drawn in stand-in colors, which become CSS variables in the SVG, so one chart serves light and dark. Text
stays text and is set in the page's font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from transfer.training.history import EpochRow

# Up to this many classes every cell of the confusion matrix is drawn and every class named.
MAX_NAMED_CLASSES = 30
_MAX_COUNTED_CLASSES = 20
_MAX_LABEL_LENGTH = 18

_INK, _MUTED, _LINE, _TRAINING, _RIGHT, _WRONG, _ON_COLOR = (f"#01020{digit}" for digit in range(1, 8))
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    _TRAINING: "--training",
    _RIGHT: "--accent",
    _WRONG: "--wrong",
    _ON_COLOR: "--on-color",
}
# Pixels of the large heat map cannot be variables; these two stand out on white and on near-black.
_RIGHT_PIXEL, _WRONG_PIXEL = (0.25, 0.50, 0.91), (0.90, 0.38, 0.14)

_STYLE = {"svg.fonttype": "none", "font.family": "DejaVu Sans"}


def loss_chart(history: Sequence[EpochRow]) -> str:
    """Draw the loss of each epoch on training and validation images, as SVG."""
    return _curves("loss", history, lambda row: row.loss, lambda row: row.validation_loss)


def accuracy_chart(history: Sequence[EpochRow]) -> str:
    """Draw the accuracy of each epoch on training and validation images, as SVG."""

    def as_percent(axes: Axes) -> None:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.03 * (1.0 - axes.get_ylim()[0])))

    return _curves("accuracy", history, lambda row: row.accuracy, lambda row: row.validation_accuracy, as_percent)


def learning_rate_chart(history: Sequence[EpochRow]) -> str:
    """Draw the learning rate at the end of each epoch, as SVG; on a logarithmic axis where it spans more than 20×."""
    rates = [row.learning_rate for row in history]

    def scale(axes: Axes) -> None:
        if min(rates) > 0 and max(rates) / min(rates) > 20:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))

    return _curves("learning-rate", history, lambda row: row.learning_rate, lambda _: None, scale)


def confusion_chart(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draw the confusion matrix (rows: truth) as SVG, shaded by the share of each class's images.

    Up to 30 classes are named; more become a compact picture, one pixel a cell, with class indices at the edges.
    """
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(classes) > MAX_NAMED_CLASSES:
        return _compact_matrix(shares)
    return _named_matrix(counts, shares, [_short(name) for name in classes])


def _curves(
    name: str,
    history: Sequence[EpochRow],
    training: Callable[[EpochRow], float],
    validation: Callable[[EpochRow], float | None],
    adjust: Callable[[Axes], None] | None = None,
) -> str:
    figure, axes = _figure(width=330, height=210, left=48, right=8, top=24, bottom=36)
    epochs = [row.epoch + 1 for row in history]
    _mark_phases(axes, history)
    marker = "o" if len(epochs) <= 30 else ""
    style: dict[str, Any] = {"marker": marker, "markersize": 4, "linewidth": 1.8, "clip_on": False}
    validated = [(row.epoch + 1, value) for row in history if (value := validation(row)) is not None]
    axes.plot(epochs, [training(row) for row in history], color=_TRAINING, **style)
    if validated:
        axes.plot(*zip(*validated, strict=True), color=_RIGHT, **style)
    axes.set_xlim(0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("epoch", color=_MUTED, labelpad=3, fontsize=11)
    axes.grid(axis="y", color=_LINE, linewidth=1)
    if adjust:
        adjust(axes)
    return _svg(figure, name)


def _mark_phases(axes: Axes, history: Sequence[EpochRow]) -> None:
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
        label = f" phase {start.phase + 1}" if room > 48 else f" {start.phase + 1}" if room > 12 else ""
        if start is not starts[0]:
            axes.axvline(edge, color=_MUTED, linewidth=1, dashes=(2, 3))
        axes.text(edge, 1.03, label, color=_MUTED, transform=above, fontsize=10)


def _named_matrix(counts: np.ndarray, shares: np.ndarray, names: list[str]) -> str:
    size = len(names)
    cell = float(np.clip(450 / size, 22, 84))
    margin = 40 + 6.6 * max(len(name) for name in names)
    upright = max(len(name) for name in names) * 6.6 < cell
    bottom = 44 if upright else margin
    figure, axes = _figure(
        width=margin + size * cell + 6, height=6 + size * cell + bottom, left=margin, right=6, top=6, bottom=bottom
    )
    for truth, predicted in np.argwhere(counts):
        share = shares[truth, predicted]
        color = _RIGHT if truth == predicted else _WRONG
        # The root keeps a single confusion among hundreds of images visible.
        strength = 0.14 + 0.78 * np.sqrt(share)
        box = (predicted - 0.47, truth - 0.47)
        axes.add_patch(Rectangle(box, 0.94, 0.94, facecolor=color, alpha=round(float(strength), 3), linewidth=0))
        if size <= _MAX_COUNTED_CLASSES:
            ink = _ON_COLOR if strength > 0.6 else _INK
            where: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
            axes.text(predicted, truth, f"{counts[truth, predicted]:,}", color=ink, fontsize=11, **where)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    # Class names are the user's: `$` in them is not a formula.
    axes.set_xticks(range(size), names, rotation=0 if upright else 90, parse_math=False, color=_INK)
    axes.set_yticks(range(size), names, parse_math=False, color=_INK)
    _name_axes(axes, "predicted", "truth")
    return _svg(figure, "confusion")


def _compact_matrix(shares: np.ndarray) -> str:
    figure, axes = _figure(width=520, height=520, left=52, right=8, top=8, bottom=52)
    pixels = np.zeros((*shares.shape, 4))
    pixels[..., :3] = _WRONG_PIXEL
    np.einsum("iij->ij", pixels)[:, :3] = _RIGHT_PIXEL
    pixels[..., 3] = np.where(shares > 0, 0.45 + 0.55 * np.sqrt(shares), 0)
    axes.imshow(pixels, interpolation="none", aspect="auto")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    for side in axes.spines.values():
        side.set_visible(True)
    _name_axes(axes, "predicted class, by index", "true class, by index")
    return _svg(figure, "confusion")


def _name_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal, color=_MUTED, fontsize=11)
    axes.set_ylabel(vertical, color=_MUTED, fontsize=11)


def _figure(
    *, width: float, height: float, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """Make a figure of this size with these margins around the axes, all in CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.tick_params(length=0, pad=6, labelsize=11, labelcolor=_MUTED)
    for side in axes.spines.values():
        side.set(color=_LINE, visible=False)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """Write a figure as an SVG element to be placed in HTML: no prologue, no date, no fixed size, ids of its own."""
    target = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts; what matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(
            target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
        )
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    width, height = (round(float(inches) * 72) for inches in figure.get_size_inches())
    root = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" style="--width: {width}px" role="img" aria-label="{name}">'
    )
    return root + text[text.index(">") + 1 :].strip()


def _short(name: str) -> str:
    printable = "".join(letter if letter.isprintable() else "�" for letter in name)
    return printable if len(printable) <= _MAX_LABEL_LENGTH else printable[: _MAX_LABEL_LENGTH - 1] + "…"
