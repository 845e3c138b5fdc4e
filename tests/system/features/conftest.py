"""Features are extracted from digits."""

from tests.extracting import digits, ingested  # noqa: F401
