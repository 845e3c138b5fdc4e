"""Errors that a user can act on, and the exit codes of the commands.

Each names the thing, says what was found and what was expected, and ends in advice. The command line prints them
without a traceback and exits with `exit_code`; a traceback is for bugs.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Exit code of a command or a job. `text` says when it occurs; the table in docs/train.md is made from it."""

    DONE = 0, "done; a night promoted, kept or found nothing new; a submitted job succeeded or is not waited for"
    FAILURE = 1, "any other failure"
    CONFIG = 2, "the configuration, or an option of the command"
    STORAGE = 3, "storage, also this machine's disk"
    DATASET = 4, "the dataset: a missing source or missing images; a prediction in which every image failed"
    BACKBONE = 5, "the base network, also a missing file of it"
    TRAINING = 6, "training"
    REGISTRY = 7, "the registry"
    FEATURES = 8, "features could not be computed or cached"
    CLUSTER = 9, "the cluster"
    NIGHT_BUSY = 10, "another process works on the night"
    NIGHT_REFUSED = 11, "the night's data was refused"
    NIGHT_KEPT = 12, "with `nightly --tell-apart`: the champion is kept"
    NIGHT_NOTHING_NEW = 13, "with `nightly --tell-apart`: nothing is new"
    CONFLICT = 14, "another process was first"
    OUT_OF_MEMORY = 15, "out of memory"
    MACHINE_BUSY = 16, "the machine is at work for other programs, and figures of a benchmark would be of these, too"
    JOB_STOPPED = 20, "a submitted job was stopped, by `ray job stop`"
    # A shell's code for a process that SIGINT ended.
    INTERRUPTED = 130, "interrupted by Ctrl-C"

    text: str

    def __new__(cls, code: int, text: str) -> Self:
        """Make a member with this value and this text."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.text = text
        return member


class TransferError(Exception):
    """Base class of every error that this library raises on purpose.

    Args:
        message: String. What was found and what was expected.
        advice: String. What to do about it; may be empty.

    Example:
        >>> try:
        ...     run = transfer.train("flowers.yaml", {"training.batchsize": 16})
        ... except transfer.TransferError as error:
        ...     print(error)
        This is not a valid configuration:
          training.batchsize: unknown key; did you mean `batch_size`?
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message, advice)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are rebuilt from `args` when they cross a process; a keyword-only argument needs help.
        return (_rebuild, (type(self), self.message, self.advice))


def _rebuild(kind: type[TransferError], message: str, advice: str) -> TransferError:
    return kind(message, advice=advice)


class ConfigError(TransferError):
    """The configuration is not valid, or cannot be run."""

    exit_code = ExitCode.CONFIG


class StorageError(TransferError):
    """Storage cannot be reached, read or written."""

    exit_code = ExitCode.STORAGE


class ObjectNotFoundError(StorageError):
    """No object has this name."""


class ArchivedObjectError(StorageError):
    """The object is in an archive tier of the service; it must be restored before it can be read."""


class AlreadyExistsError(StorageError):
    """Put-if-absent found other content under this name: another process was first."""

    exit_code = ExitCode.CONFLICT


class CorruptObjectError(StorageError):
    """The bytes of an object do not have its digest."""


class UnsafeStorageError(StorageError):
    """The store does not honour put-if-absent, so two writers could overwrite each other."""


class DatasetError(TransferError):
    """The images, their labels or a dataset version cannot be used as asked."""

    exit_code = ExitCode.DATASET


class BackboneError(TransferError):
    """The pretrained network cannot be found, read, or cut at the requested place."""

    exit_code = ExitCode.BACKBONE


class ClassifierBaseError(BackboneError):
    """The pretrained network ends in a classifier; its outputs are poor features."""


class TrainingError(TransferError):
    """Training cannot start or continue."""

    exit_code = ExitCode.TRAINING


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class OutOfMemoryError(TrainingError):
    """The memory of a GPU or of a machine does not suffice for the job."""

    exit_code = ExitCode.OUT_OF_MEMORY


class RunConflictError(TrainingError):
    """A run with this id was started with another configuration."""


class RunBusyError(TrainingError):
    """Another process trains the same run and wrote a checkpoint first."""

    exit_code = ExitCode.CONFLICT


class BaseChangedError(TrainingError):
    """The base network is no longer the one that the run began with."""


class RegistryError(TransferError):
    """A model cannot be exported, published, promoted or read."""

    exit_code = ExitCode.REGISTRY


class PromotionConflictError(RegistryError):
    """Another process promoted a version at the same time and was first."""

    exit_code = ExitCode.CONFLICT


class PublishConflictError(RegistryError):
    """Another process published the same run at the same time and was first."""

    exit_code = ExitCode.CONFLICT


class ParityError(RegistryError):
    """The outputs of the exported model differ from those of the evaluated model, or cannot be computed."""


class DifferentAnswersError(ParityError):
    """The outputs of the exported model differ from those of the evaluated model by more than rounding."""


class FeaturesError(TransferError):
    """Cached features cannot be computed, written or found."""

    exit_code = ExitCode.FEATURES


class ClusterError(TransferError):
    """A Ray cluster cannot be reached, or a request to it failed."""

    exit_code = ExitCode.CLUSTER


class BusyMachineError(TransferError):
    """The machine is at work for other programs, so that nothing can be measured on it."""

    exit_code = ExitCode.MACHINE_BUSY


class NightBusyError(TransferError):
    """Another process works on this night."""

    exit_code = ExitCode.NIGHT_BUSY
