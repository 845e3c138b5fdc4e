"""The table of exit codes for docs/train.md: python -m scripts.tables.exit_codes."""

from __future__ import annotations

from scripts.tables import markdown
from transfer.errors import ExitCode


def exit_codes() -> str:
    """Every exit code, and when a command ends with it."""
    return markdown(["exit code", "when"], ([str(code.value), code.text] for code in ExitCode))


if __name__ == "__main__":
    print(exit_codes())
