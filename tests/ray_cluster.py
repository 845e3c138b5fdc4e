"""A local Ray cluster that the tests of a folder share, with token authentication, as users get it."""

from __future__ import annotations

import contextlib

from tests.digits import ingested_digits
from transfer.cluster import connect


@contextlib.contextmanager
def running_cluster():
    """Connect this process to a cluster. To start after the S3 service: the workers inherit its credentials."""
    import ray

    # Where there is a cluster, images are ingested on it, by processes that each import TensorFlow first.
    ingested_digits()
    connect()
    yield
    ray.shutdown()
