"""A published version on this machine's disk, where TensorFlow Serving and other programs can read it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transfer.errors import RegistryError
from transfer.registry.versions import ModelVersion, download_version
from transfer.storage import Store, sha256_of_file


def fetch_version(store: Store, version: ModelVersion, to: Path) -> Path:
    """Copy a version's files, each verified, into the folder `to`/<number>, and return that folder.

    It appears whole or not at all, so a server may watch `to`. Where it is there already, nothing is copied. Raises
    CorruptObjectError for a wrong byte in storage, RegistryError when the folder is there with other content.
    """
    target = to / str(version.number)
    if target.exists():
        _check_same(version, target)
        return target
    to.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that it can be renamed; the name is no number, so that no server takes it for a version.
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{version.number}-") as folder:
        download_version(store, version, Path(folder) / "model").rename(target)
    return target


def _check_same(version: ModelVersion, folder: Path) -> None:
    for file in version.files:
        path = folder / file.name
        if not path.is_file() or sha256_of_file(path) != file.sha256:
            raise RegistryError(
                f"{folder} is there already and is not version {version.number} of model `{version.model}`: "
                f"{file.name} is {'another file' if path.is_file() else 'missing'}.",
                advice="Remove that folder, or name another one with --to.",
            )
