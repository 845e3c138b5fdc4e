"""Local paths in a configuration: whether a job on a cluster, in a copy of the working tree, can find them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transfer.config import Config
from transfer.config.paths import is_source_path, path_here
from transfer.errors import ConfigError
from transfer.preflight import files_of
from transfer.submission.working_tree import shipped_files
from transfer.tuning.space import bases_within_reach


def check_paths(
    config: Config, document: Mapping[str, Any], *, job: str, arguments: Sequence[str] = (), root: Path
) -> None:
    """Refuse paths that lead elsewhere, or nowhere, on the cluster.

    `document`: the document of `config`, with paths as they were written. `arguments`: further arguments of the job.
    `root`: the working tree, resolved. The job runs in a copy with only its shipped files, and files that it writes
    there are lost. Raises ConfigError, which names the key or option, and the path.
    """
    for key, written in _places(config, document, job, arguments):
        _check_place(key, written, root)
    beside = _beside_storage(config)
    own = {key: path for key, file in files_of(config.base).items() if (path := _local(file)) is not None}
    for key, path in own.items():
        written = document["base"][key.removeprefix("base.")]
        if path_here(written).is_absolute():
            _check_whole_path(key, path, root, beside)
        else:
            _check_shipped(key, path, root, beside)
    tried = bases_within_reach(config) if job == "sweep" and config.sweep is not None else {}
    for base in itertools.chain.from_iterable(tried.values()):
        for key, file in files_of(base).items():
            path = _local(file)
            if path not in (None, own.get(key)):
                # Records of trials contain this path, and each copy of the tree is in another folder.
                _check_whole_path(key, path, root, beside)


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Values of an option in the arguments of a command, as `--option X` or `--option=X`, in order."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == option:
            found.extend(islice(rest, 1))
        elif argument.startswith(f"{option}="):
            found.append(argument.removeprefix(f"{option}="))
    return found


def _places(
    config: Config, document: Mapping[str, Any], job: str, arguments: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Keys and options whose value must be reachable from every node, and the value as it was written."""
    storage = document["storage"]
    yield "storage", storage if isinstance(storage, str) else storage["uri"]
    source = document["dataset"]["source"]
    if is_source_path(source):
        yield "dataset.source", source
    # MLflow also takes the bare name for a workspace of Databricks.
    if job == "sweep" and config.sweep is not None and config.sweep.mlflow not in (None, "databricks"):
        yield "sweep.mlflow", document["sweep"]["mlflow"]
    if job == "predict":
        for option in ("--images", "--output"):
            yield from ((option, written) for written in values_of(option, arguments))


def _check_place(key: str, written: str, root: Path) -> None:
    path = _local(written)
    if path is None:
        return
    example = f"{key} s3://BUCKET/PREFIX" if key.startswith("--") else f"--set {key}=s3://BUCKET/PREFIX"
    advice = f"Name a bucket, or the whole path of a folder that all nodes share: {example}."
    if key == "sweep.mlflow":
        advice = "Name a server, http://…, or the whole path of a database that the head of the cluster has."
    if not path.is_absolute():
        raise ConfigError(
            f"`{key}` is {written}, a relative path, and the job runs in a copy of the working tree without data.",
            advice=advice,
        )
    if _is_within(path, root):
        raise ConfigError(
            f"`{key}` is {path}, inside of the working tree, and the job runs in a copy of that without data.",
            advice=advice,
        )


def _check_whole_path(key: str, path: Path, root: Path, beside: Path | None) -> None:
    """Refuse a file or folder that some nodes may not have under this path."""
    if path.is_relative_to(root):
        raise ConfigError(
            f"`{key}` is {path}, a path of this machine, and the job runs in a copy of the working tree elsewhere.",
            advice=f"Name it relative to the configuration, which a sweep's choices cannot be, or {_put(beside)}.",
        )
    if not (beside and path.is_relative_to(beside)):
        raise ConfigError(
            f"`{key}` is {path}, outside of the working tree, and is not shipped with it.",
            advice=f"Put it into the working tree and name it relative to the configuration, or {_put(beside)}.",
        )


def _check_shipped(key: str, path: Path, root: Path, beside: Path | None) -> None:
    """Refuse a file or folder, named by a relative path, that is not in the job's copy of the working tree."""
    if not path.is_relative_to(root):
        raise ConfigError(
            f"`{key}` is a relative path to {path}, outside of the working tree, and is not shipped with it.",
            advice=f"Put it into the working tree, or {_put(beside)} and give its whole path.",
        )
    if not path.exists():
        raise ConfigError(
            f"`{key}` is a relative path, and there is nothing at {path}.",
            advice="A path in a configuration begins in the folder of its file, one of --set at the working tree. "
            f"Put it there, or {_put(beside)}.",
        )
    # Hidden files, for example of a file manager, are no part of a model.
    inside = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    shipped = {file.relative_to(root).as_posix() for file in shipped_files(root)}
    names = [file.relative_to(root).as_posix() for file in (inside if path.is_dir() else [path])]
    missing = sorted(name for name in names if name not in shipped)
    if missing:
        raise ConfigError(
            f"`{key}` is {path}, and {missing[0]} is not shipped: an ignore file names it, a folder above it is a "
            "link, or it is never shipped.",
            advice=f"Take it out of .gitignore and .rayignore, or {_put(beside)}.",
        )


def _put(beside: Path | None) -> str:
    """End of an advice: where to put files that all nodes need."""
    return f"put it beside storage, into {beside}" if beside else "put it into a bucket (s3://…)"


def _beside_storage(config: Config) -> Path | None:
    """The folder around a local storage, which all nodes share; None for a bucket, or if it is the root folder."""
    path = _local(config.storage.uri)
    folder = path.parent if path else None
    return folder if folder and folder != folder.parent else None


def _local(address: str) -> Path | None:
    """The local path of an address; None for other addresses."""
    scheme, is_address, rest = address.partition("://")
    if not is_address:
        return path_here(address)
    # `sqlite:///x` is relative, `sqlite:////x` is not.
    return {"file": Path(rest), "sqlite": Path(rest[1:])}.get(scheme)


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, as it is written or by links."""
    return Path(os.path.normpath(path)).is_relative_to(folder) or path.resolve().is_relative_to(folder.resolve())
