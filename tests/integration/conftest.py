"""One local Ray cluster for all tests here, with token authentication, as users get it.

It starts after the S3 server, whose credentials the workers find in the environment that they inherit.
"""

import pytest


@pytest.fixture(scope="session")
def ray_cluster(s3_server):
    import ray

    from transfer.cluster import connect

    connect()
    yield
    ray.shutdown()
