"""Paths of a configuration, on the machine that reads them."""

from __future__ import annotations

from pathlib import Path

from transfer.errors import ConfigError


def path_here(text: str | Path) -> Path:
    """The path on this machine, where `~` is the home of whoever runs this and `~name` that of a user.

    Raises ConfigError where there is no such home: an unknown user, or a container whose user has none.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{str(text)!r} begins with a home folder that this machine does not have.",
            advice="Write the whole path, or set HOME.",
        ) from None
