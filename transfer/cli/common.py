"""Common parts of all commands: options, and printing answers and errors."""

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

# Errors of temporary files, such as a full disk; errors of storage are StorageErrors.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
GOES_ON = "Finished work is stored: the same command continues"
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in phases.0.epochs=3.")
]
ConfigOrNone = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="YAML configuration, which says where storage is.")
]
StorageUri = Annotated[
    str | None, typer.Option("--storage", help="A folder or s3://… instead of a configuration, for everything in it.")
]
Promote = Annotated[
    Literal["first", "gate", "always", "never"] | None,
    typer.Option(help="Whether the new version serves. Default: publish.promote of the configuration."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and everything else on stderr.")]


def load(path: Path, overrides: list[str] | None) -> Config:
    """Load the configuration with its overrides."""
    from transfer.config import load_config

    return load_config(path, overrides or [])


def opened(path: Path, overrides: list[str] | None) -> tuple[Config, Store]:
    """Load the configuration with its overrides, and open its storage."""
    from transfer.storage import open_store

    loaded = load(path, overrides)
    return loaded, open_store(loaded.storage)


def opened_either(path: Path | None, storage: str | None, overrides: list[str] | None) -> tuple[Config | None, Store]:
    """Open the storage of the configuration at `path`, or the one that `--storage` names, without a configuration.

    Raises ConfigError unless exactly one of the two is given.
    """
    from transfer.config import StorageConfig
    from transfer.config.paths import path_here
    from transfer.errors import ConfigError
    from transfer.storage import open_store

    if path is not None and storage is None:
        return opened(path, overrides)
    advice = "Give a configuration, such as `config.yaml`, or `--storage` with a folder or s3://…"
    if storage is None:
        raise ConfigError("Neither a configuration nor a storage is named.", advice=advice)
    if path is not None:
        raise ConfigError("Both a configuration and a storage are named.", advice=advice)
    if overrides:
        raise ConfigError("--set changes a configuration, and only --storage is given.", advice=advice)
    if "://" not in storage and not (storage and path_here(storage).is_dir()):
        raise ConfigError(
            f"--storage is `{storage}`, and there is nothing at {Path(storage).absolute()}.", advice=advice
        )
    return None, open_store(StorageConfig(uri=storage))


def opened_to_write(path: Path, overrides: list[str] | None) -> tuple[Config, Store]:
    """Load the configuration, open its storage, and probe that the storage is safe with several writers."""
    from transfer.storage import probe

    loaded, store = opened(path, overrides)
    probe(store, single_writer=loaded.storage.single_writer)
    return loaded, store


def with_promote(overrides: list[str] | None, promote: str | None) -> list[str]:
    """The overrides, including the option `--promote`."""
    return [*(overrides or []), *([] if promote is None else [f"publish.promote={promote}"])]


def run(work: Callable[[], dict[str, Any]], as_json: bool, *, interrupted: str = "") -> None:
    """Do a command's work and print its answer. A TransferError ends the process.

    Args:
        work: Does the work and returns the answer: values of JSON's own types by name.
        as_json: Print the answer as one JSON object; else as lines and tables.
        interrupted: Sentence to print after Ctrl-C, without a full stop.
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
    """Log this project's messages and warnings of libraries to stderr; restore the process's logging afterwards."""
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
    """End the process after Ctrl-C with a sentence about the work that is not lost."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        then = f" {' '.join([what_then, *getattr(interrupt, '__notes__', ())])}." if what_then else ""
        sys.stderr.write(f"\nInterrupted.{then}\n")
        sys.exit(ExitCode.INTERRUPTED)


@contextmanager
def errors_explained() -> Any:
    """If the block raises a TransferError, end the process with its message, advice and exit code."""
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
                advice=f"Free some space, or set TMPDIR to another folder than {tempfile.gettempdir()}. Then repeat "
                "the command.",
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
    """Send the output of libraries and of Ray's workers to stderr; only the answer goes to stdout.

    The file descriptor is redirected, because TensorFlow and Ray also print from C++ and from other processes.
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
