"""The command `transfer`, also as `python -m transfer`."""

import sys

from transfer.errors import ExitCode


def main() -> None:
    """Entry point of the command. Ctrl-C while it is still being loaded is no error either."""
    try:
        from transfer.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
