"""Published versions on this machine's disk, for programs that read no bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transfer.catalog.model import ModelVersion
from transfer.errors import RegistryError
from transfer.registry.versions import download_version
from transfer.storage import Store, sha256_of_file


def fetch_version(store: Store, version: ModelVersion, to: Path, *, promotion: int | None = None) -> Path:
    """Copy a version's files, each verified, into a folder in `to`, and return that folder.

    Its name is the number of the `promotion` by which the version serves, so that a rollback is a higher one; without
    that `version-<number>`, which no server takes for something to serve.

    It appears whole or not at all, so a server may watch `to`. Where it is there already, nothing is copied. Raises
    CorruptObjectError for a wrong byte in storage, RegistryError when the folder is there with other content.
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
    # In the same folder, so that it can be renamed; the name is no number, so that no server takes it for a version.
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{version.number}-") as folder:
        downloaded = download_version(store, version, Path(folder) / "model")
        try:
            downloaded.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Somebody else fetched it meanwhile.
            _check_same(version, target)
    return target


def higher_number(folder: Path) -> int | None:
    """The highest number beside a fetched version's folder, if that is another one: TensorFlow Serving serves it."""
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
