"""Stored reports, and their predictions, which are read part by part."""

from __future__ import annotations

import bisect
import functools
from itertools import accumulate

import numpy as np

from transfer.catalog import layout
from transfer.catalog.run import ReportEntry
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.training.run import Run


class StoredReport:
    """A report of a run in storage. Raises CorruptObjectError if it is damaged, ObjectNotFoundError."""

    def __init__(self, run: Run, number: int) -> None:
        self._run, self._number = run, number
        self._entry = run.reports.read_as(ReportEntry, number)
        self.report = Report.from_json(self._read(layout.REPORT))
        rows = self._entry.part_rows or (self.report.metrics.images,)
        self._starts = list(accumulate(rows, initial=0))

    def predictions(self, start: int = 0, stop: int | None = None) -> Predictions:
        """Predictions for rows of the split, by default for all; only the parts that have them are read.

        Raises CorruptObjectError if a part is damaged, ObjectNotFoundError.
        """
        stop = min(self._starts[-1] if stop is None else stop, self._starts[-1])
        first, last = bisect.bisect_right(self._starts, start) - 1, bisect.bisect_left(self._starts, stop)
        parts = [
            self._part(number).slice(max(start - self._starts[number], 0), stop - self._starts[number])
            for number in range(first, last)
        ]
        return Predictions(
            [key for part in parts for key in part.keys],
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            parts[0].classes,
            any(part.rounds_coarsely for part in parts),
        )

    # The last one: units of an evaluation ask for the rows of one part after the other.
    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _part(self, number: int) -> Predictions:
        parts = len(self._entry.part_rows)
        name = layout.part_of_predictions(number, parts) if parts else layout.PREDICTIONS
        classes = [row.name for row in self.report.metrics.per_class]
        return Predictions.from_parquet(self._read(name), classes, name=self._name(name))

    def _read(self, name: str) -> bytes:
        return self._run.store.read_verified(self._name(name), self._entry.files[name])

    def _name(self, name: str) -> str:
        return layout.report_file(self._run.folder, self._number, name)
