"""One local Ray cluster for all tests here, with token authentication, as users get it."""

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    from transfer.cluster import connect

    connect()
    yield
    ray.shutdown()
