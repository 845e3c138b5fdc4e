"""The working tree of a submitted job: the shipped files, and their zip."""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.errors import ConfigError
from transfer.runtime.numbers import size
from transfer.runtime.ray_private.cluster import ignore_patterns, package_limit_bytes

EXCLUDED = [
    *(".git", ".hg", ".svn", ".ci", ".idea", ".vscode"),
    *("__pycache__", "*.py[co]", ".*_cache", ".hypothesis", ".ipynb_checkpoints", ".tox", ".nox", "node_modules"),
    *("/data", "/storage", "/build", "/dist", "*.egg-info", ".DS_Store"),
    # Secrets are not sent to other machines.
    *(".env", ".env.*", "*.pem", "id_rsa*", "id_ed25519*", ".aws", ".ssh"),
]
"""Patterns as in `.gitignore` of files that are never shipped, besides virtual environments and ignored files."""

IGNORE_FILES = (".gitignore", ".rayignore")
CONFIG_FOLDER = "submitted"
"""Folder in the zip for a configuration from outside of the tree."""


@dataclass(frozen=True)
class Package:
    """A zip of the working tree. The same files always give the same bytes."""

    path: Path
    config: str
    """Name of the configuration in the zip."""
    sha256: str
    files: int
    size_bytes: int


def pack(root: Path, config: Path, target: Path) -> Package:
    """Write the files of `root` that a job needs, and its configuration, into the zip `target`.

    Raises ConfigError, which names the largest folders, if it would exceed the limit of Ray.
    """
    # Its relative paths begin in this folder, even if the file itself is a link.
    root, config = root.resolve(), config.parent.resolve() / config.name
    files = {path.relative_to(root).as_posix(): path for path in shipped_files(root)}
    name = config.relative_to(root).as_posix() if config.is_relative_to(root) else f"{CONFIG_FOLDER}/{config.name}"
    files[name] = config
    _check_size(root, files)
    # Stored without compression, as Ray does, whose limit is one of these bytes.
    with zipfile.ZipFile(target, "w") as archive:
        for each, path in sorted(files.items()):
            # Without times, so that a new checkout gives the same bytes.
            archive.writestr(zipfile.ZipInfo(each), path.read_bytes())
    with target.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Package(path=target, config=name, sha256=digest, files=len(files), size_bytes=target.stat().st_size)


def shipped_files(root: Path) -> Iterator[Path]:
    """The files of a working tree that are shipped; links to folders are not followed."""
    yield from _walk(root, [(root, ignore_patterns(EXCLUDED))])


def _walk(folder: Path, ignored: list[tuple[Path, Any]]) -> Iterator[Path]:
    for name in IGNORE_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            ignored = [*ignored, (folder, ignore_patterns(lines))]
    for path in sorted(folder.iterdir()):
        # A pattern such as `data/` matches only folders, which it recognizes by the slash.
        mark = "/" if path.is_dir() else ""
        if any(patterns.match_file(path.relative_to(base).as_posix() + mark) for base, patterns in ignored):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
            yield from _walk(path, ignored)


def _check_size(root: Path, files: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total, limit = sum(sizes.values()), package_limit_bytes()
    if total < limit:
        return
    folders: Counter[str] = Counter()
    for name, size_bytes in sizes.items():
        folders[name.rpartition("/")[0] or "."] += size_bytes
    largest = ", ".join(f"{folder} ({size(size_bytes)})" for folder, size_bytes in folders.most_common(3))
    raise ConfigError(
        f"The working tree {root} has {size(total)} to ship, Ray takes less than {size(limit)}. Largest: {largest}.",
        advice="Name what the job does not need in .rayignore (same patterns as .gitignore); images belong in storage.",
    )
