"""Evaluation of a finished run on held-out images, and its stored report.

The shards of the split are units of work (`work.py`), on all workers. Each is read once: that gives the predictions,
which are stored at once, what the metrics are computed from, and the pictures of the worst mistakes. Whoever gathers
this holds predictions of no image, and needs no TensorFlow.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import Any

import numpy as np

from transfer import __version__
from transfer.catalog import layout
from transfer.catalog.run import EpochRow, ReportEntry
from transfer.dataset.manifest import Dataset, Splitting
from transfer.errors import AlreadyExistsError, DatasetError, ObjectNotFoundError, TrainingError
from transfer.evaluation.against import Beside, ServingAnswers, compare_with_serving
from transfer.evaluation.baseline_work import PROBES, RANDOM, probe_baselines
from transfer.evaluation.baselines import Baselines, commonest_class_baseline
from transfer.evaluation.metrics import Metrics, Tally
from transfer.evaluation.mistakes import Mistake, worst_of
from transfer.evaluation.report import Report
from transfer.evaluation.sampled import Sample, sample_of
from transfer.evaluation.units import Picture, Unit, units_of
from transfer.evaluation.work import GALLERY_SIZE, EvaluationWork, Part, predictions_file
from transfer.runtime.actors import Actors, Task
from transfer.runtime.cluster import run_where
from transfer.runtime.progress import progress
from transfer.storage import Store, now_utc, sha256_hex
from transfer.training.checkpoints import Checkpoints
from transfer.training.history import final_row, kept_epoch
from transfer.training.run import Run

logger = logging.getLogger(__name__)

TASK = Task("evaluate", TrainingError, "The run stays. Repeat the command: predictions that are stored are found.")
UNITS_AT_ONCE = 2
"""Of a worker: one is read while another one is computed."""


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    split: str | None = None,
    exactly: bool = False,
    serving: ServingAnswers | None = None,
) -> int:
    """Evaluate a finished run on its workers and store the report. Returns its number in the run's log of reports.

    `split`: default is the test split, or validation if there is no test split. `exactly`: use the exported graph;
    otherwise the fastest way, whose predictions differ only by rounding. `serving`: the version that serves, for
    comparison. Raises TrainingError if the run is not finished or workers keep dying, DatasetError if the split is
    empty, OutOfMemoryError.
    """
    split = split or dataset.held_out_split
    if not dataset.rows(split):
        raise DatasetError(
            f"Split `{split}` of {dataset.reference} is empty, there is nothing to evaluate on.",
            advice="Set dataset.test or dataset.validation above 0.",
        )
    last = Checkpoints(run).finished()
    history = list(last.progress.history)
    units = units_of(dataset.shards_of(split))
    claim = {
        "split": split,
        "exactly": exactly,
        "graph": run.config.publish.graph,
        "weights": last.weights,
        "parts": [unit.rows for unit in units],
        "release": __version__,
    }
    number, stored = _claimed_number(run, claim)
    makes_baselines = run.config.baselines.made != "none" and split != "train"
    gathered = _Gathered(dataset.classes, sample=sample_of(run.store, dataset, split) if makes_baselines else None)
    asked = serving.asked if serving and not isinstance(serving.asked, str) else None
    arguments = run.config, run.id, number, exactly, asked, stored
    workers = run.config.workers
    with (
        Actors[Unit, Part](EvaluationWork, *arguments, workers=workers, task=TASK, at_once=UNITS_AT_ONCE) as actors,
        progress(f"evaluate {split}", total=dataset.rows(split)) as advance,
    ):
        for unit, part in actors.map(units):
            gathered.add(unit, part)
            advance(unit.rows)
    shares = run.config.dataset
    splitting = dataset.splitting or Splitting(validation=shares.validation, test=shares.test)
    metrics = gathered.tally.metrics()
    report = Report(
        name=run.config.name,
        dataset=dataset.reference,
        run_id=run.id,
        split=split,
        base=run.config.base.model.rpartition("/")[2],
        metrics=metrics,
        history=history,
        mistakes=gathered.mistakes,
        counts=dataset.counts,
        split_by=splitting.title,
        config=run.config.model_dump(mode="json", exclude={"storage"}),
        validation_accuracy=None
        if split == "validation"
        else final_row(history, run.config.phases).validation_accuracy,
        graph=run.config.publish.graph,
        is_exact=exactly,
        untrained_classes=gathered.untrained_classes,
        rounds_coarsely=gathered.rounds_coarsely,
        kept=kept_epoch(history, run.config.phases),
        weights=run.config.base.weights_title,
        serving=compare_with_serving(gathered.beside(serving), dataset.reference, split, serving) if serving else None,
        baselines=_baselines(run, dataset, gathered, metrics, history),
    )
    return _store(run, number, claim, report, gathered)


class _Gathered:
    """What the parts tell, of which little is held: sums, the worst mistakes, a sample. Their order does not matter."""

    def __init__(self, classes: list[str], *, sample: Sample | None) -> None:
        """`sample`: images of which it is noted whether they are right, for the baselines."""
        self.sample = sample
        self.sample_right = np.zeros(0 if sample is None else len(sample.rows), bool)
        self.tally = Tally(classes)
        self.mistakes: list[Mistake] = []
        self.untrained_classes: tuple[str, ...] = ()
        self.rounds_coarsely = False
        self.files: dict[str, str] = {}
        """SHA-256 of each file of predictions, by its name."""
        self.rows: dict[int, int] = {}
        """Images of each of them, by the number of its unit."""
        self._beside = Beside()
        self._why_not: dict[int, str] = {}
        self._pictures: dict[str, Picture] = {}

    def add(self, unit: Unit, part: Part) -> None:
        """Add what is told of a unit."""
        self.tally += part.tally
        self.untrained_classes = part.untrained_classes
        self.rounds_coarsely |= part.rounds_coarsely
        self.files[predictions_file(unit)] = part.sha256
        self.rows[unit.number] = unit.rows
        if self.sample is not None:
            own = np.flatnonzero((self.sample.rows >= unit.start) & (self.sample.rows < unit.start + unit.rows))
            self.sample_right[own] = part.right[self.sample.rows[own] - unit.start]
        if isinstance(part.beside, str):
            self._why_not[unit.number] = part.beside
        elif part.beside is not None:
            self._beside += part.beside
        self.mistakes = worst_of([*self.mistakes, *part.mistakes], GALLERY_SIZE)
        pictures = {**self._pictures, **part.pictures}
        self._pictures = {mistake.sha256: pictures[mistake.sha256] for mistake in self.mistakes}

    def beside(self, serving: ServingAnswers) -> Beside | str:
        """The same images by the version that serves, or why it was not asked, or could not be, as a clause."""
        if isinstance(serving.asked, str):
            return serving.asked
        return self._why_not[min(self._why_not)] if self._why_not else self._beside

    def pictures(self, store: Store) -> dict[str, bytes]:
        """The encoded images of the mistakes, by SHA-256. Those that cached features stood for are read now."""
        return {sha256: picture.read(store) for sha256, picture in self._pictures.items()}


def _baselines(
    run: Run, dataset: Dataset, gathered: _Gathered, metrics: Metrics, history: list[EpochRow]
) -> Baselines | None:
    """The baselines of a report; None if none are asked for."""
    if gathered.sample is None:
        return None
    arguments = run.config, run.id, gathered.sample, gathered.sample_right, history
    try:
        probed = run_where(run.config.workers, probe_baselines, *arguments)
    # Whatever a baseline fails with, the run is evaluated.
    except Exception as error:  # noqa: BLE001
        logger.warning("Baselines are left out: %s", error)
        probed = Baselines(made=(), not_made=dict.fromkeys((*PROBES, *RANDOM), f"{type(error).__name__}: {error}"))
    commonest = commonest_class_baseline(metrics, dataset.counts["train"])
    return probed.model_copy(update={"made": (commonest, *probed.made)})


def _claimed_number(run: Run, claim: dict[str, Any]) -> tuple[int, frozenset[str]]:
    """The number of the report, and the files of predictions that are stored under it already.

    That is the last number, if its evaluation has the same `claim` and did not end: it goes on. Otherwise it is a new
    number, because one that was killed may have left objects under its own.
    """
    folder = layout.reports_log(run.folder)
    listed = [layout.below(folder, item.name) for item in run.store.list(f"{folder}/")]
    numbers = [int(parts[0].partition(".")[0]) for parts in listed]
    last = max(numbers, default=0)
    # The entry of the log, which is written last, is no file in a folder.
    files = {"/".join(parts[1:]) for number, parts in zip(numbers, listed, strict=True) if number == last}
    is_open = layout.REPORT_CLAIM in files and not files & {"", layout.REPORT}
    if is_open and run.store.read(layout.report_file(run.folder, last, layout.REPORT_CLAIM)) == _encoded(claim):
        stored = frozenset(files - {layout.REPORT_CLAIM})
        logger.info("Report %d was not finished, and goes on: %d of its parts are stored.", last, len(stored))
        return last, stored
    return _new_number(run, last + 1, claim), frozenset()


def _new_number(run: Run, number: int, claim: dict[str, Any]) -> int:
    """Claim the next free number from `number` on."""
    while not _is_new(run, number, claim):
        number += 1
    return number


def _is_new(run: Run, number: int, claim: dict[str, Any]) -> bool:
    try:
        return run.store.put(layout.report_file(run.folder, number, layout.REPORT_CLAIM), _encoded(claim))
    except AlreadyExistsError:
        return False


def _encoded(claim: dict[str, Any]) -> bytes:
    return (json.dumps(claim, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _store(run: Run, number: int, claim: dict[str, Any], report: Report, gathered: _Gathered) -> int:
    """Store the report under the number that its predictions have, and return it.

    Another evaluation with the same claim may have gone on with the same predictions meanwhile. If it told the same,
    its report is this one. Otherwise, for example if another version serves, this one gets a number of its own.
    """
    # Imported late: matplotlib takes a second, which reading a report does not need.
    from transfer.evaluation.page import render_html

    pictures, depth = gathered.pictures(run.store), run.config.dataset.image_depth
    page = render_html(report, thumbnails=pictures, storage=run.store.uri, depth=depth)
    files = {layout.REPORT: report.to_json(), layout.REPORT_PAGE: page.encode()}
    digests = {name: sha256_hex(data) for name, data in files.items()} | dict(sorted(gathered.files.items()))
    rows = tuple(gathered.rows[unit] for unit in sorted(gathered.rows))
    entry = ReportEntry(split=report.split, files=digests, part_rows=rows if len(rows) > 1 else (), at=now_utc())
    own = number
    while True:
        try:
            if own != number:
                for name, sha256 in gathered.files.items():
                    data = run.store.read_verified(layout.report_file(run.folder, number, name), sha256)
                    run.store.put(layout.report_file(run.folder, own, name), data)
            for name, data in files.items():
                run.store.put(layout.report_file(run.folder, own, name), data)
            return run.reports.append(entry.model_dump(exclude_defaults=True), number=own)
        except AlreadyExistsError:
            with suppress(ObjectNotFoundError):
                if run.reports.read_as(ReportEntry, own).files == digests:
                    return own
            own = _new_number(run, own + 1, claim)
            logger.info("Another evaluation stored another report meanwhile. This one is report %d.", own)
