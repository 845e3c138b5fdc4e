"""Shows each epoch of a run on stderr when it ends: on a terminal a row of its phase's table, in a log a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transfer.catalog.run import EpochRow
from transfer.config import EarlyStoppingConfig, PhaseConfig
from transfer.runtime.numbers import percent
from transfer.runtime.progress import is_shown
from transfer.training.history import best_row

_HEADS = ("epoch", "loss", "accuracy", "val loss", "val accuracy", "learning rate", "images/s")
# Together with the mark ` ★` they fill the 80 columns of a narrow terminal.
_WIDTHS = (9, 9, 10, 10, 14, 15, 10)
_NOT_WATCHED = EarlyStoppingConfig()
"""The rule that marks the best epoch of a phase without early stopping, which keeps its last epoch."""


class EpochTable:
    """Shows the epochs of one run. `history`: epochs that an earlier attempt has shown."""

    def __init__(self, phases: Sequence[PhaseConfig], history: Sequence[EpochRow] = ()) -> None:
        self._phases = phases
        self._rows = list(history)
        self._headed: int | None = None
        """The phase whose heading was printed last."""

    def show(self, row: EpochRow) -> None:
        """Show one more epoch. If early stopping ends its phase, also show to which epoch the phase goes back."""
        self._rows.append(row)
        if not is_shown():
            return
        phase = self._phases[row.phase]
        best = best_row(self._of_phase(row.phase), phase.early_stopping or _NOT_WATCHED)
        if sys.stderr.isatty():
            self._show_row(row, is_best=best is row)
        else:
            _print(self._line(row, is_best=best is row))
        if best is not None and best is not row and self._goes_back(best):
            _print(f"Going back to {self._place(best)} ({phase.title}), the best epoch of the phase.")

    @property
    def place(self) -> str | None:
        """The last epoch that ended, as in `epoch 12 of phase 0`; None before the first one."""
        return self._place(self._rows[-1]) if self._rows else None

    def _of_phase(self, phase: int) -> list[EpochRow]:
        return [row for row in self._rows if row.phase == phase]

    def _goes_back(self, best: EpochRow) -> bool:
        """Whether the phase of `best` has ended and early stopping goes back to `best`."""
        phase, last = self._phases[best.phase], self._rows[-1]
        rule = phase.early_stopping
        return rule is not None and (
            self._number(last) == phase.epochs or last.epoch - best.epoch >= rule.patience_epochs
        )

    def _number(self, row: EpochRow) -> int:
        """Number of an epoch within its phase, from 1."""
        return row.epoch - self._of_phase(row.phase)[0].epoch + 1

    def _place(self, row: EpochRow) -> str:
        return f"epoch {self._number(row)} of phase {row.phase}"

    def _show_row(self, row: EpochRow, *, is_best: bool) -> None:
        if self._headed != row.phase:
            self._headed = row.phase
            _print(f"phase {row.phase}: {self._phases[row.phase].title}", style="bold")
            _print(_columns(_HEADS), style="dim")
        text = _columns((f"{self._number(row)}/{self._phases[row.phase].epochs}", *_figures(row)))
        _print(f"{text} ★" if is_best else text, style="bold green" if is_best else "")

    def _line(self, row: EpochRow, *, is_best: bool) -> str:
        phase = self._phases[row.phase]
        title = f"phase {row.phase} ({phase.title}), epoch {self._number(row)}/{phase.epochs}"
        loss, accuracy, validation_loss, validation_accuracy, learning_rate, rate = _figures(row)
        parts = [f"loss {loss}", f"accuracy {accuracy}"]
        if row.validation_loss is not None:
            parts += [f"validation loss {validation_loss}", f"validation accuracy {validation_accuracy}"]
        parts += [f"learning rate {learning_rate}", f"{rate} images/s"]
        best = ", best so far" if is_best else ""
        return f"{title}: {', '.join(parts)}{best}"


def _print(text: str, *, style: str = "") -> None:
    if not sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        return
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, style=style, markup=False, soft_wrap=True)


def _figures(row: EpochRow) -> tuple[str, ...]:
    return (
        f"{row.loss:.4f}",
        percent(row.accuracy),
        "–" if row.validation_loss is None else f"{row.validation_loss:.4f}",
        "–" if row.validation_accuracy is None else percent(row.validation_accuracy),
        f"{row.learning_rate:.1e}",
        "–" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
    )


def _columns(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
