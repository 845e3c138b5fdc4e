"""Stored reports, read whole."""

from __future__ import annotations

from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.evaluation.stored import StoredReport
from transfer.training.run import Run


def load_report(run: Run, number: int) -> tuple[Report, Predictions]:
    """A stored report and all of its predictions."""
    stored = StoredReport(run, number)
    return stored.report, stored.predictions()
