"""The room's own predictions and reports."""

from tests.unit.evaluation.conftest import random_predictions, report_of  # noqa: F401
