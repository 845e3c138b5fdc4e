"""What all commands have in common: options, and how answers and errors are printed."""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from transfer.errors import StorageError, TransferError
from transfer.memory import memory_explained
from transfer.numerics import check_keras_json

if TYPE_CHECKING:
    from transfer.config import Config

# What temporary files meet: no error of the program, whose own files a store answers for.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in phases.0.epochs=3.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]


def load(path: Path, overrides: list[str] | None) -> Config:
    """The configuration with its overrides."""
    from transfer.config import load_config

    return load_config(path, overrides or [])


def run(work: Callable[[], dict[str, Any]], as_json: bool) -> None:
    """Do a command's work, then print what came out of it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _log_on_stderr(), errors_explained(), _stdout_kept_clean() as stdout:
        check_keras_json()
        answer = work()
        if as_json:
            import json

            stdout.write(json.dumps(answer) + "\n")
        else:
            from transfer.printing import show

            show(answer, stdout)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what this project logs, and warnings of libraries; the logging of the process is its own again after."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root, own = logging.getLogger(), logging.getLogger("transfer")
    level = own.level
    root.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.setLevel(level)
        root.removeHandler(handler)


@contextmanager
def errors_explained() -> Any:
    """End the process with the error's message, advice and exit code, when there is one that a user can act on."""
    try:
        with memory_explained("The command"):
            yield
    except TransferError as error:
        _end_with(error)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _end_with(
            StorageError(
                f"This machine's disk cannot be written to: {os.strerror(error.errno)}{where}.",
                advice=f"Temporary files go to {tempfile.gettempdir()}; TMPDIR says where else. Run it again then.",
            )
        )


def _end_with(error: TransferError) -> NoReturn:
    sys.stderr.write(f"Error: {error.message}\n")
    if error.advice:
        sys.stderr.write(f"  {error.advice}\n")
    sys.exit(error.exit_code)


@contextmanager
def _stdout_kept_clean() -> Any:
    """Send what libraries and Ray's workers print to stderr; the answer alone goes to stdout.

    Done on the file descriptor: TensorFlow and Ray print from C++ and from other processes, too.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
