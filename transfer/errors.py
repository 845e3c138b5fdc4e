"""Errors that a user can act on.

Each names the thing, says what was found and what was expected, and ends in advice. The command line prints them
without a traceback and exits with `exit_code`; a traceback is for bugs.
"""

from __future__ import annotations


class TransferError(Exception):
    """Base of every error that this library raises on purpose.

    `message` says what was found and what was expected; `advice` says what to do about it.
    """

    exit_code = 1

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
    """The configuration is not one that can be run."""

    exit_code = 2


class StorageError(TransferError):
    """Storage did not do what was asked."""

    exit_code = 3


class ObjectNotFoundError(StorageError):
    """There is no object with that name."""


class AlreadyExistsError(StorageError):
    """Put-if-absent found other content under that name: somebody else was first."""

    exit_code = 14


class CorruptObjectError(StorageError):
    """An object's bytes are not the ones that its digest promises."""


class UnsafeStorageError(StorageError):
    """The store does not honour put-if-absent, so two writers could overwrite each other."""


class DatasetError(TransferError):
    """The images, their labels or a dataset version cannot be used as asked."""

    exit_code = 4


class BackboneError(TransferError):
    """The pretrained network cannot be found, read, or cut where it was asked to be."""

    exit_code = 5


class TrainingError(TransferError):
    """Training could not start or could not go on."""

    exit_code = 6


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class OutOfMemoryError(TrainingError):
    """The memory of a GPU or of a machine does not suffice for what was asked."""

    # 11 to 13 are outcomes of a night.
    exit_code = 15


class RunConflictError(TrainingError):
    """A run with this id exists and was started with another configuration."""


class BaseChangedError(TrainingError):
    """The base is not the network any more that a run began with."""


class RegistryError(TransferError):
    """A model cannot be exported, published, promoted or read."""

    exit_code = 7


class PromotionConflictError(RegistryError):
    """Somebody else promoted at the same time and was first."""

    exit_code = 14


class PublishConflictError(RegistryError):
    """Somebody else published the same run at the same time and was first."""

    exit_code = 14


class ParityError(RegistryError):
    """The exported model answers differently from the model that was evaluated."""


class DifferentAnswersError(ParityError):
    """It answers, and the difference is more than rounding."""


class ActivationsError(TransferError):
    """The frozen part of a network cannot be computed, kept or found as asked."""

    exit_code = 8


class ClusterError(TransferError):
    """A Ray cluster cannot be reached, or does not do as asked."""

    exit_code = 9


class NightBusyError(TransferError):
    """Somebody else works on this night."""

    exit_code = 10
