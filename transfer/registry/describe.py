"""Descriptions of a model's versions, from the registry's documents and the dataset versions that they name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.dataset.classes import names_among
from transfer.dataset.index import read_images
from transfer.dataset.listing import as_words, bytes_of_column, find_words
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.dataset.splits import SPLITS, drawn_never_trained_on
from transfer.registry.retention_log import Pin, read_retention
from transfer.registry.versions import Promotion, current_promotion, list_promotions, list_versions, load_version
from transfer.storage import Log, Store, as_model, now_utc


class Refusal(BaseModel):
    """An entry of the log of refusals. `champion`: the version that served then; None if none did."""

    model_config = ConfigDict(frozen=True)

    at: str
    champion: int | None
    evidence: dict[str, Any]
    """The number of the night or the id of the run, and the gate's rules with their figures; as in a promotion."""

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rules that failed."""
        return [rule for rule in self.evidence["rules"] if not rule["passed"]]

    @property
    def text(self) -> str:
        """The refusal in sentences."""
        return f"Refused: {' '.join(rule['text'] for rule in self.failed)}"


def record_refusal(store: Store, version: ModelVersion, *, champion: int | None, evidence: dict[str, Any]) -> None:
    """Record that a version was refused. `champion`: number of the version that serves.

    A refusal that only repeats the previous one (same champion, same failed rules) is not recorded again. Raises
    CorruptObjectError, StorageError.
    """
    refusal = Refusal(at=now_utc(), champion=champion, evidence=evidence)
    known = [(each.champion, [rule["name"] for rule in each.failed]) for each in refusals_of(store, version)[-1:]]
    if (champion, [rule["name"] for rule in refusal.failed]) in known:
        return
    _log(store, version.model, version.number).append(refusal.model_dump(mode="json"))


def refusals_of(store: Store, version: ModelVersion) -> list[Refusal]:
    """All refusals of a version, oldest first. Raises CorruptObjectError, StorageError."""
    log = _log(store, version.model, version.number)
    return [as_model(Refusal, log.read(number), uri=store.uri) for number in log.numbers()]


def latest_refusals(store: Store, model: str) -> dict[int, Refusal]:
    """The latest refusal of each refused version, by version number. Raises CorruptObjectError, StorageError."""
    folder = layout.refusals_folder(model)
    by_version = defaultdict(list)
    for item in store.list(f"{folder}/"):
        by_version[int(layout.below(folder, item.name)[0])].append(item)
    found = {}
    for version, items in by_version.items():
        log = _log(store, model, version)
        found[version] = as_model(Refusal, log.read(log.numbers_among(items)[-1]), uri=store.uri)
    return found


def _log(store: Store, model: str, version: int) -> Log:
    return Log(store, layout.refusals_log(model, version))


def trained_on(store: Store, version: ModelVersion) -> Dataset | None:
    """The dataset version that a model version was trained on; None if it was not trained here."""
    if version.trained is None:
        return None
    dataset = version.trained.dataset_version
    return load_dataset(store, dataset.name, dataset.number)


def classes_in(store: Store, dataset: Dataset, version: ModelVersion, renames: Mapping[str, str]) -> list[str]:
    """The classes of a model version, in the order of its outputs, by their names in a dataset version.

    A class keeps its index from one version of a dataset to the next, even if it is renamed, unless somebody dropped a
    class or started over. In that case, and for a model of another dataset, classes are matched by name, after
    `renames` (`{old: new}`).
    """
    trained = version.trained
    before = trained_on(store, version) if trained and trained.dataset_version.name == dataset.name else None
    same_indices = before is not None and dataset.has_indices_of(before)
    return names_among(version.classes, dataset.classes, same_indices=same_indices, renames=renames)


class NeverTrainedOn:
    """Tells which images of a split a model version was never trained on.

    The version's own dataset version must have the image in the same split or in one further from training. If that
    dataset version records splits (splits or groups were given, or images of small classes placed), the recorded splits
    decide. An image that it does not have then counts as never trained on, unless groups are formed in another way by
    now: the version may have been trained on other images of its group. Without recorded splits, the images' content
    decides, and nothing is read here. Of a version that was not trained here, no image of a dataset is known to it.
    """

    def __init__(self, store: Store, version: ModelVersion, dataset: Dataset, split: str) -> None:
        """`split`: of `dataset`, whose images are asked about. Raises what reading shards raises."""
        before = trained_on(store, version)
        self._is_trained = before is not None
        self._split = split
        self._trained_with: dict[str, Any] = {}
        self._recorded: np.ndarray | None = None
        """Sorted digests, uint64 [n, 4], of images of one kind; None if the content of images decides."""
        if before is None:
            return
        if before.splitting is None:
            self._trained_with = version.provenance.config["dataset"]
            return
        self._is_of_held_out = before.splitting.groups_by is not None and before.splitting != dataset.splitting
        """Whether these are images that the version held out; otherwise images that are nearer to its training."""
        nearness = SPLITS.index(split)
        shards = [shard for shard in before.shards if (SPLITS.index(shard.split) >= nearness) == self._is_of_held_out]
        tables = read_images(store, before, ["sha256"], shards)
        words = as_words(b"".join(bytes_of_column(table["sha256"]) for table in tables), 32)
        self._recorded = words[np.lexsort(words.T[::-1])]

    def of(self, digests: Sequence[str]) -> np.ndarray:
        """Whether the version was never trained on an image: bool [n]. `digests`: SHA-256 of the n images, hex."""
        if not self._is_trained:
            return np.ones(len(digests), bool)
        if self._recorded is None:
            return drawn_never_trained_on(digests, self._split, self._trained_with)
        wanted = as_words(bytes.fromhex("".join(digests)), 32)
        is_recorded: np.ndarray = find_words(self._recorded, wanted) >= 0
        return is_recorded if self._is_of_held_out else ~is_recorded


@dataclass(frozen=True)
class DescribedVersion:
    """A version with its status: promoted, pinned, refused."""

    version: ModelVersion
    is_promoted: bool
    pin: Pin | None
    refusal: Refusal | None
    """The latest refusal."""


def describe_versions(store: Store, model: str) -> list[DescribedVersion]:
    """All versions, oldest first. Raises CorruptObjectError, StorageError."""
    return _describe(store, model, list(list_versions(store, model)), latest_refusals(store, model))


def describe_version(store: Store, model: str, number: int | None = None) -> DescribedVersion:
    """A version by number, or the promoted one. Raises RegistryError if it does not exist."""
    version = load_version(store, model, number)
    refusals = refusals_of(store, version)
    (described,) = _describe(store, model, [version], {version.number: refusals[-1]} if refusals else {})
    return described


def promotions_about(store: Store, version: ModelVersion) -> list[tuple[int, Promotion]]:
    """The promotion log's entries that promoted or replaced a version, oldest first, with their numbers."""
    entries = list_promotions(store, version.model)
    return [each for each in entries if version.number in (each[1].version, each[1].replaces)][::-1]


def _describe(
    store: Store, model: str, versions: list[ModelVersion], refused: Mapping[int, Refusal]
) -> list[DescribedVersion]:
    promoted, now = current_promotion(store, model), read_retention(store, model)
    return [
        DescribedVersion(
            version=version,
            is_promoted=promoted is not None and promoted.version == version.number,
            pin=now.pin_of(version.number),
            refusal=refused.get(version.number),
        )
        for version in versions
    ]
