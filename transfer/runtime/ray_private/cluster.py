"""Private parts of Ray: the output of workers, the message about tokens, and the limits of working directories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"  # noqa: S105 - a name
"""Name of the logger that says whether a cluster requires a token."""


def filter_printed_lines(is_shown: Callable[[str], bool]) -> None:
    """Show in the driver only some of the lines that processes of the cluster print.

    Ray prints them from a thread of the driver, by handlers of its dispatcher, and has no setting for it.

    Args:
        is_shown: Whether to show a line.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    def filtered(show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        return lambda batch: show({**batch, "lines": [line for line in batch["lines"] if is_shown(line)]})

    dispatcher.handlers = [(name, filtered(handler)) for name, handler in dispatcher.handlers]


def ignore_patterns(lines: list[str]) -> Any:
    """Parse the patterns of an ignore file as Ray does. Returns an object with `match_file(path)`.

    Args:
        lines: Lines of a `.gitignore` or `.rayignore`.
    """
    from ray._private.thirdparty.pathspec import PathSpec

    return PathSpec.from_lines("gitwildmatch", lines)


def package_limit_bytes() -> int:
    """Largest working directory that Ray accepts: the limit of its dashboard, and of the memory of the head."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return min(int(DASHBOARD_CLIENT_MAX_SIZE), int(GCS_STORAGE_MAX_SIZE))
