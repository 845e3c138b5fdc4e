"""Imported for its effect: the logical CPUs must be set before any test runs an operation."""

import tests.replicas  # noqa: F401
