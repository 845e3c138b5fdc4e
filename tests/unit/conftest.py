"""Commands, called in this process."""

import json
from subprocess import CompletedProcess

import pytest

from transfer.cli.main import app


@pytest.fixture
def transfer(capfd):
    """Calls a command. What is logged does not come to stderr here."""

    def call(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="transfer")
        said = capfd.readouterr()
        return CompletedProcess(arguments, ended.value.code, said.out, said.err)

    return call


@pytest.fixture
def answer_of(transfer):
    """Calls a command that answers in JSON and succeeds; returns the answer."""

    def call(*arguments):
        done = transfer(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call
