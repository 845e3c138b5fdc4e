"""Copies of published versions on this machine's disk, for programs that cannot read a bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transfer.catalog.model import ModelVersion
from transfer.errors import RegistryError
from transfer.registry.versions import download_version
from transfer.storage import Store, sha256_of_file


def fetch_version(store: Store, version: ModelVersion, to: Path, *, promotion: int | None = None) -> Path:
    """Copy a version's files, each verified, into a folder in `to`. Returns that folder.

    The folder is named by the number of the `promotion`, so that a rollback has a higher number. Without `promotion` it
    is `version-<number>`, which servers ignore because it is no number.

    The folder appears whole or not at all, so a server may watch `to`. A folder that exists is compared, not copied
    again. Raises CorruptObjectError for a wrong byte in storage, RegistryError if the folder exists with other content.
    """
    target = to / (f"version-{version.number}" if promotion is None else str(promotion))
    if target.exists():
        _check_same(version, target)
        return target
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(
            f"The folder {to} cannot be made: {error.strerror}.", advice="Name another one with --to."
        ) from error
    # In `to`, because a rename works only inside a file system. The name is no number, so servers ignore it.
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{version.number}-") as folder:
        downloaded = download_version(store, version, Path(folder) / "model")
        try:
            downloaded.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Another process fetched the version meanwhile.
            _check_same(version, target)
    return target


def higher_number(folder: Path) -> int | None:
    """The highest number of a folder beside `folder`, if above its own: TensorFlow Serving serves that one instead."""
    numbers = [int(path.name) for path in folder.parent.iterdir() if path.is_dir() and path.name.isdigit()]
    return max((number for number in numbers if number > int(folder.name)), default=None)


def _check_same(version: ModelVersion, folder: Path) -> None:
    for file in version.files:
        path = folder / file.name
        if not path.is_file() or sha256_of_file(path) != file.sha256:
            raise RegistryError(
                f"{folder} is there already and is not version {version.number} of model `{version.model}`: "
                f"{file.name} is {'another file' if path.is_file() else 'missing'}.",
                advice="Remove that folder, or name another one with --to.",
            )
