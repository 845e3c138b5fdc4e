"""Commands, called in this process."""

from subprocess import CompletedProcess

import pytest

from transfer.cli import app


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
