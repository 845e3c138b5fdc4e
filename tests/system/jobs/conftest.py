"""A head node that all tests of jobs share."""

import secrets

import pytest

from tests.clusters import running_head


@pytest.fixture(scope="package")
def head(tmp_path_factory):
    """A head node of its own, with dashboard and token; yields the environment that reaches it."""
    token = tmp_path_factory.mktemp("head") / "token"
    token.write_text(secrets.token_hex(32))
    with running_head(RAY_AUTH_TOKEN_PATH=str(token)) as environment:
        yield environment
