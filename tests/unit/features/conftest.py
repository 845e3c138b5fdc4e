"""Imported for its effect: the logical CPUs must be set before any test runs an operation. And fixtures."""

import tests.replicas  # noqa: F401
from tests.extracting import digits, ingested  # noqa: F401
