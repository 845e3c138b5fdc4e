"""Every name in storage. No other module makes or parses names; the tables of docs/storage.md are made from here.

A function named `…_log` returns the prefix of a numbered log (`transfer.storage.Log`), `…_folder` a folder, and any
other function the name of an object. The argument `folder` is the folder of a run, a pack or a learning-rate range
test. Numbers count from 1; `sha256` and `digest` are 64 hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import Field

from transfer.errors import StorageError

# The prefixes that are listed. All other names begin with one of them.
DATASETS = "datasets"
SHARDS = "shards"
INDEX = "index"
REJECTS = "rejects"
SEEN = "seen"
CLASSES = "classes"
REMOVALS = "removals"
FEATURES = "features"
STATISTICS = "statistics"
RUNS = "runs"
RANGE_TESTS = "lr_find"
SWEEPS = "sweeps"
NIGHTS = "nights"
MODELS = "models"
RAY = "ray"
PROBES = ".probe"
# Prefix of files that a local store is still writing. They are not listed, and no object may have such a name.
TEMPORARY_PREFIX = ".transfer-tmp-"

Number = Annotated[int, Field(ge=1, lt=2**63)]
"""Number of an entry or a version in documents."""


def check_name(name: str) -> str:
    """Return the name if it stays inside the store. Raises StorageError otherwise."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts) or any(ord(character) < 32 for character in name):
        raise StorageError(
            f"{name!r} is not an object's name.",
            advice="Names are relative, parts separated by single slashes, without '.', '..' or control characters.",
        )
    if any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        raise StorageError(f"{name!r} is reserved for files that are being written.", advice="Choose another name.")
    return name


def numbered(folder: str, number: int) -> str:
    """Name of a numbered object below a folder or a log: at least eight digits, so that names sort like numbers."""
    return f"{folder}/{number:08d}"


_ENTRY = re.compile(r"([0-9]{8,})\.json")


def entry(log: str, number: int) -> str:
    """Name of an entry of a log."""
    return f"{numbered(log, number)}.json"


def entry_number_in(log: str, name: str) -> int | None:
    """The number of an entry of the log if the name is that of one; otherwise None."""
    match = _ENTRY.fullmatch(name.removeprefix(f"{log}/"))
    return int(match[1]) if match else None


def below(folder: str, name: str) -> list[str]:
    """The parts of a name behind those of the folder that contains it."""
    return name.removeprefix(f"{folder}/").split("/")


def sha256_in(name: str) -> str:
    """The digest in the name of an object that is named by its digest."""
    return name.rpartition("/")[2].partition(".")[0]


def pattern(make: Callable[[str], str]) -> str:
    """Regular expression of the names that `make` returns; its group is the id."""
    before, after = make("\0").split("\0")
    return f"{re.escape(before)}([^/]+){re.escape(after)}"


def entry_pattern(log: Callable[[str], str]) -> str:
    """Regular expression of the entries of the logs that `log` returns; its groups are the id and the number."""
    return rf"{pattern(log)}/([0-9]{{8,}})\.json"


# Datasets


def dataset_log(name: str) -> str:
    """The versions of a dataset; an entry is written after all objects that it names."""
    return f"{DATASETS}/{name}"


def shard(sha256: str) -> str:
    """Images of a split, with their keys, labels and digests."""
    return f"{SHARDS}/{sha256}.parquet"


def index_part(sha256: str) -> str:
    """Digests, labels, keys and groups of the images of some shards; the parts that a version names are its index."""
    return f"{INDEX}/{sha256}.parquet"


def ledger(sha256: str) -> str:
    """Files that were refused or left out of a dataset version, with reasons."""
    return f"{REJECTS}/{sha256}.parquet"


def seen_log(name: str) -> str:
    """Ingests of a dataset, whose checks of files the next ingest reuses; the highest number counts."""
    return f"{SEEN}/{name}"


def seen_files(sha256: str) -> str:
    """Results of an ingest's checks of each file."""
    return f"{SEEN}/{sha256}.parquet"


def classes_log(dataset: str) -> str:
    """Decisions about a dataset: a class dropped or restored, a start over; the highest number counts."""
    return f"{CLASSES}/{dataset}"


def removals_log() -> str:
    """Objects of dataset versions that are being removed, and until when; an entry is written before they go."""
    return REMOVALS


def removal_end(number: int) -> str:
    """The end of such a removal; without it, it goes on until its time."""
    return f"{numbered(REMOVALS, number)}/end.json"


# Cached features


def features_folder(frozen_part: str) -> str:
    """All cached features of a frozen part, which is named by its digest."""
    return f"{FEATURES}/{frozen_part}"


def features_description(frozen_part: str) -> str:
    """Description of the frozen part, for people."""
    return f"{features_folder(frozen_part)}/frozen_part.json"


def features_content(frozen_part: str, shard_sha256: str, rows: int, sha256: str) -> str:
    """Features and labels, one row for each row of an image shard, which the name says, too."""
    return f"{features_folder(frozen_part)}/{shard_sha256}-{rows}-{sha256}.arrow"


def earlier_features_content(frozen_part: str, sha256: str) -> str:
    """The same, as earlier releases named it."""
    return f"{features_folder(frozen_part)}/{sha256}.arrow"


def features_entry(frozen_part: str, shard_sha256: str) -> str:
    """Digest of the content that belongs to an image shard; written last."""
    return f"{features_folder(frozen_part)}/{shard_sha256}.json"


_SHA256 = "[0-9a-f]{64}"
_FEATURES_ENTRY = re.compile(rf"{FEATURES}/{_SHA256}/({_SHA256})\.json")
_FEATURES_CONTENT = re.compile(rf"{FEATURES}/{_SHA256}/(?:({_SHA256})-([1-9][0-9]{{0,17}})-)?({_SHA256})\.arrow")


def features_entry_in(name: str) -> str | None:
    """SHA-256 of the image shard if the name is that of its entry; otherwise None."""
    match = _FEATURES_ENTRY.fullmatch(name)
    return match[1] if match else None


class NamedContent(NamedTuple):
    """The parts of a name of cached features; shard and rows are None in a name of an earlier release."""

    shard_sha256: str | None
    rows: int | None
    sha256: str


def features_content_in(name: str) -> NamedContent | None:
    """The parts of the name if it is that of cached features; otherwise None."""
    match = _FEATURES_CONTENT.fullmatch(name)
    return NamedContent(match[1], int(match[2]) if match[2] else None, match[3]) if match else None


# Networks with random weights


def statistics_log(digest: str) -> str:
    """One entry: the statistics of a random network's BatchNorms on some shards; `digest` is that of both."""
    return f"{STATISTICS}/{digest}"


# Runs

REPORT = "report.json"
REPORT_PAGE = "report.html"
REPORT_CLAIM = "claim.json"
PREDICTIONS = "predictions.parquet"


def run_folder(run: str) -> str:
    """All objects of a run, which is named by its id."""
    return f"{RUNS}/{run}"


def run_start(run: str) -> str:
    """Configuration, dataset version, time of the start, and what started the run; without it there is no run."""
    return f"{run_folder(run)}/run.json"


def checkpoints_log(folder: str) -> str:
    """Checkpoints, which name their arrays."""
    return f"{folder}/checkpoints"


def arrays(folder: str, sha256: str) -> str:
    """Weights and optimiser state."""
    return f"{folder}/arrays/{sha256}.npz"


def arrays_folder(folder: str) -> str:
    """All arrays of checkpoints."""
    return f"{folder}/arrays"


def base_log(folder: str) -> str:
    """One entry: the digest of the base as it was pretrained, and the release of Keras that built it."""
    return f"{folder}/base"


def inputs_log(folder: str) -> str:
    """One entry: whether each phase trains on pixels or on cached features, and why."""
    return f"{folder}/inputs"


def uses_log(folder: str) -> str:
    """Attempts at training: their start, and the digests of the frozen parts whose cached features they use."""
    return f"{folder}/uses"


def events(folder: str, split: str, epoch: int) -> str:
    """Figures for TensorBoard, of the split `train` or `validation`, up to an epoch."""
    return f"{folder}/tensorboard/{split}/events.out.tfevents.{epoch:08d}"


def reports_log(folder: str) -> str:
    """Evaluations: split, time, and digests of the files; an entry is written after its files."""
    return f"{folder}/reports"


def report_file(folder: str, number: int, name: str) -> str:
    """Files of an evaluation: `claim.json`, written first, `report.json`, `report.html`, and the predictions."""
    return f"{numbered(reports_log(folder), number)}/{name}"


def part_of_predictions(part: int, parts: int) -> str:
    """The file of a part of an evaluation's predictions, where the split has many shards; parts count from 0."""
    return f"predictions/{predictions_part(part, parts)}"


# Learning-rate range tests


def range_test_folder(test: str) -> str:
    """All objects of a range test, which is named by its id; it has logs `inputs` and `uses`, as a run has."""
    return f"{RANGE_TESTS}/{test}"


def range_test_page(test_folder: str, sha256: str) -> str:
    """The page of a range test."""
    return f"{test_folder}/{sha256}.html"


def curve(test_folder: str) -> str:
    """Losses by learning rate, the suggested rates, and the page's digest; written last."""
    return f"{test_folder}/curve.json"


# Sweeps


def sweep_folder(sweep: str) -> str:
    """All objects of a sweep, which is named by its id; the runs of its trials are stored as other runs."""
    return f"{SWEEPS}/{sweep}"


def sweep_start(sweep_folder: str) -> str:
    """Configuration and dataset version of a sweep."""
    return f"{sweep_folder}/sweep.json"


def started_log(sweep_folder: str) -> str:
    """Values with which each trial was first started; an entry has the trial's number."""
    return f"{sweep_folder}/started"


def trial_log(sweep_folder: str, trial: int) -> str:
    """Records of a trial; a later attempt may add one."""
    return numbered(f"{sweep_folder}/trials", trial)


def trial_in(name: str) -> tuple[str, int] | None:
    """Id of the sweep and number of the trial if the name is that of an entry of a trial's log; otherwise None."""
    match = re.fullmatch(rf"{SWEEPS}/([^/]+)/trials/([0-9]{{8,}})/[0-9]{{8,}}\.json", name)
    return (match[1], int(match[2])) if match else None


def pack_folder(sweep_folder: str, pack: str) -> str:
    """Checkpoints and arrays of trials that are trained as one program."""
    return f"{sweep_folder}/packs/{pack}"


def results_log(sweep_folder: str) -> str:
    """Results of the whole sweep, one for each time it ended, with the page's digest."""
    return f"{sweep_folder}/results"


def sweep_page(sweep_folder: str, sha256: str) -> str:
    """The page of a sweep."""
    return f"{results_log(sweep_folder)}/{sha256}.html"


# Nights


def nights_log(model: str) -> str:
    """Beginnings of nights: time and configuration."""
    return f"{NIGHTS}/{model}"


def night_folder(model: str, number: int) -> str:
    """All of a night."""
    return numbered(nights_log(model), number)


def claims_log(night_folder: str) -> str:
    """Processes that work on the night; the highest number counts."""
    return f"{night_folder}/claims"


def night_plan(night_folder: str) -> str:
    """The night's plan, decided once, also for a process that resumes the night."""
    return f"{night_folder}/plan.json"


def night_summary(night_folder: str, sha256: str) -> str:
    """The summary of the night."""
    return f"{night_folder}/summary/{sha256}.json"


def night_page(night_folder: str, sha256: str) -> str:
    """The page of the night."""
    return f"{night_folder}/page/{sha256}.html"


def night_end(night_folder: str) -> str:
    """The outcome of the night, written last; without it the night is not over, or was given up for a later one."""
    return f"{night_folder}/end.json"


def judged(model: str, digest: str) -> str:
    """The night that judged a model; `digest` is that of everything that decides its training and its judgement."""
    return f"{nights_log(model)}/judged/{digest}.json"


# Models

VERSION_DESCRIPTION = "assets.extra/transfer.json"
"""A file of a version's SavedModel: what the version is, for people and for this project."""


def published_log(model: str, run: str) -> str:
    """The versions as which a run was published; an entry is complete, and written before that of the version."""
    return f"{MODELS}/{model}/published/{run}"


def versions_log(model: str) -> str:
    """The versions of a model; an entry is written last, and without it the version does not exist."""
    return f"{MODELS}/{model}/versions"


def version_folder(model: str, number: int) -> str:
    """The SavedModel of a version."""
    return numbered(versions_log(model), number)


def version_claim(model: str, number: int) -> str:
    """The process that publishes a version with this number; written first, in the SavedModel's folder."""
    return f"{version_folder(model, number)}/assets.extra/claim.json"


def promotions_log(model: str) -> str:
    """Promotions of versions; the one with the highest number serves."""
    return f"{MODELS}/{model}/promotions"


def serving_folder(model: str) -> str:
    """Copies of a model's versions for servers."""
    return f"{MODELS}/{model}/serving"


def served_folder(model: str, promotion: int) -> str:
    """The SavedModel of the version that a promotion promoted, for servers."""
    return numbered(serving_folder(model), promotion)


def refusals_folder(model: str) -> str:
    """All refusals of a model's versions."""
    return f"{MODELS}/{model}/refusals"


def refusals_log(model: str, version: int) -> str:
    """Refusals of a version by a gate, with reasons."""
    return numbered(refusals_folder(model), version)


def retention_log(model: str) -> str:
    """Pins, announcements and removals of versions, each with the state after it; the highest number is current."""
    return f"{MODELS}/{model}/retention"


# Predictions, in a folder that a user names, which lies anywhere. Readers of Parquet skip names that begin with `_`.


def predictions_plan() -> str:
    """In a folder of predictions: what is predicted by which version, and how it is divided into parts."""
    return "_plan.json"


def predictions_part(part: int, parts: int) -> str:
    """In a folder of predictions: consecutive rows, from part 0 on, in the order of the names."""
    return f"part-{part:0{max(len(str(parts - 1)), 5)}d}.parquet"


def predictions_end() -> str:
    """In a folder of predictions, written last: how many images there are, and how many of them failed."""
    return "_SUCCESS"


# Of storage itself


def probe(unique: str) -> str:
    """Objects that a probe writes and removes."""
    return f"{PROBES}/{unique}"


# Cached features can be computed again. The logs of promotions, pins and removals of versions are never removed.
_REMOVABLE = re.compile(
    rf"{FEATURES}/.+"
    rf"|{DATASETS}/[^/]+/[0-9]{{8,}}\.json"
    rf"|({SHARDS}|{INDEX}|{REJECTS})/[0-9a-f]{{64}}\.parquet"
    rf"|{MODELS}/[^/]+/(versions/[0-9]{{8,}}(\.json|/.+)|serving/[0-9]{{8,}}/.+)"
    rf"|{RUNS}/[^/]+/.+"
    rf"|{SWEEPS}/[^/]+/packs/[^/]+/(checkpoints|arrays)/[^/]+"
)
_GOES_WHEN_EMPTY = re.compile(rf"{MODELS}/[^/]+/(versions|serving)/.+|{RUNS}/.+")


def is_removable(name: str) -> bool:
    """Whether an object may be removed: cached features, what a dataset or model version has, of a run or a pack."""
    return _REMOVABLE.fullmatch(name) is not None


def goes_when_empty(folder: str) -> bool:
    """Whether a folder is removed with its last object: the folder of a version or a run, or one inside it."""
    return _GOES_WHEN_EMPTY.fullmatch(folder) is not None
