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
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from transfer.errors import ExitCode, StorageError, TransferError
from transfer.runtime.memory import memory_explained
from transfer.runtime.numerics import check_keras_json

if TYPE_CHECKING:
    from transfer.config import Config
    from transfer.storage import Store

# What temporary files meet: no error of the program, whose own files a store answers for.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
GOES_ON = "What is done is kept: the same command goes on"
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in phases.0.epochs=3.")
]
Promote = Annotated[
    Literal["first", "gate", "always", "never"] | None,
    typer.Option(help="Whether the version serves: publish.promote."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]


def load(path: Path, overrides: list[str] | None) -> Config:
    """The configuration with its overrides."""
    from transfer.config import load_config

    return load_config(path, overrides or [])


def opened(path: Path, overrides: list[str] | None) -> tuple[Config, Store]:
    """The configuration with its overrides, and its storage."""
    from transfer.storage import open_store

    loaded = load(path, overrides)
    return loaded, open_store(loaded.storage)


def opened_to_write(path: Path, overrides: list[str] | None) -> tuple[Config, Store]:
    """The same, found fit to decide between two who write at once."""
    from transfer.storage import probe

    loaded, store = opened(path, overrides)
    probe(store, single_writer=loaded.storage.single_writer)
    return loaded, store


def with_promote(overrides: list[str] | None, promote: str | None) -> list[str]:
    """The overrides with the option `--promote` among them."""
    return [*(overrides or []), *([] if promote is None else [f"publish.promote={promote}"])]


def run(work: Callable[[], dict[str, Any]], as_json: bool, *, interrupted: str = "") -> None:
    """Do a command's work, then print what came out of it; an error that a user can act on ends the process.

    Args:
        work: Does it, and returns the answer: values of JSON's own types, by their names.
        as_json: Print the answer as one JSON object; else as lines and tables.
        interrupted: What to say after Ctrl-C, without a full stop.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _log_on_stderr(), _interrupt_explained(interrupted), errors_explained(), _stdout_kept_clean() as stdout:
        check_keras_json()
        answer = work()
        if as_json:
            import json

            stdout.write(json.dumps(answer) + "\n")
        else:
            from transfer.cli.output import show

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
def _interrupt_explained(what_then: str) -> Iterator[None]:
    """End the process after Ctrl-C with a sentence about what is kept, as far as the work noted it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        then = f" {' '.join([what_then, *getattr(interrupt, '__notes__', ())])}." if what_then else ""
        sys.stderr.write(f"\nInterrupted.{then}\n")
        sys.exit(ExitCode.INTERRUPTED)


@contextmanager
def errors_explained() -> Any:
    """End the process with the error's message, advice and exit code, when there is one that a user can act on."""
    try:
        with memory_explained("The command"):
            yield
    except TransferError as error:
        end_with(error)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        end_with(
            StorageError(
                f"This machine's disk cannot be written to: {os.strerror(error.errno)}{where}.",
                advice=f"Temporary files go to {tempfile.gettempdir()}; TMPDIR says where else. Run it again then.",
            )
        )


def end_with(error: TransferError) -> NoReturn:
    """End the process with an error's message, advice and exit code."""
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
