"""Commands, called in this process."""

import json

import pytest


@pytest.fixture
def answer_of(transfer):
    """Calls a command that answers in JSON and succeeds; returns the answer."""

    def call(*arguments):
        done = transfer(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call
