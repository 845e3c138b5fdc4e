"""A head node that all tests of jobs share."""

from tests.system.jobs.conftest import head  # noqa: F401
