"""Evaluation of a finished run on held-out images, and its stored report."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf

from transfer.catalog import layout
from transfer.catalog.run import ReportEntry
from transfer.dataset.batches import stored_images
from transfer.dataset.manifest import Dataset, Shard, Splitting
from transfer.dataset.shards import read_shard
from transfer.errors import DatasetError
from transfer.evaluation.against import ServingAnswers, compare_with_serving
from transfer.evaluation.metrics import compute_metrics, worst_mistakes
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.features.extract import Extractor
from transfer.features.forward import forward_of
from transfer.features.frozen import frozen_part_of
from transfer.features.store import FeatureStore
from transfer.runtime.memory import FOR_EVALUATION, memory_explained
from transfer.runtime.progress import progress
from transfer.storage import Store, now_utc, sha256_hex
from transfer.training.history import final_row, kept_epoch
from transfer.training.inference import InferenceWork, rounds_coarsely, trace_inference
from transfer.training.model import TransferModel
from transfer.training.run import Run
from transfer.training.samples import CachedSplit
from transfer.training.shared_models import restore_model

HEAD_ROWS = 1024
"""Batch size of the head on cached features."""


def probabilities_of(
    run: Run, dataset: Dataset, split: str, model: TransferModel, *, exactly: bool
) -> tuple[np.ndarray, bool]:
    """Predict a split with a run's trained model. Also returns whether the exported graph itself computed it.

    The probabilities are float32 [images, classes], in stored order. `exactly`: use the exported graph. Otherwise
    faster ways are allowed, which differ by rounding: the head on cached features, if no phase trained the base, and
    OpenVINO. Raises what extraction and a forward pass raise.
    """
    shards = dataset.shards_of(split)
    if not exactly and (features := _features(run, model, shards)):
        return _by_head(model, features), False
    return _by_network(run, dataset, split, model, exactly=exactly)


def _features(run: Run, model: TransferModel, shards: list[Shard]) -> CachedSplit | None:
    """The cached features of some shards, computed now if they are missing; None if they are not to be cached."""
    config = run.config
    # Cached features were computed with merged BatchNorms, which a plain graph lacks.
    if not config.trains_head_only or config.features.cache == "never" or config.publish.graph == "plain":
        return None
    frozen_part = frozen_part_of(model.backbone, 0, map_dtype=config.features.map_dtype)
    # A map is larger than the image, and cached in half precision unless told otherwise.
    if frozen_part is None or len(frozen_part.shape) > 1:
        return None
    Extractor(run.store, engine=config.features.engine).extract_all([(shards, [frozen_part])])
    rows = FeatureStore(run.store, frozen_part).open_all(shards)
    # An object may be damaged, or have been removed just now.
    found = [each for each in rows if each is not None]
    return CachedSplit(shards, found) if len(found) == len(shards) else None


def _by_head(model: TransferModel, features: CachedSplit) -> np.ndarray:
    answers = []
    for start in range(0, len(features), HEAD_ROWS):
        rows = np.arange(start, min(start + HEAD_ROWS, len(features)))
        values = np.empty((len(rows), *features.shape), features.dtype)
        features.take(rows, values)
        logits = model.head(tf.constant(values), training=False)
        answers.append(tf.nn.softmax(tf.cast(logits, tf.float32)).numpy())
    return np.concatenate(answers)


def _by_network(
    run: Run, dataset: Dataset, split: str, model: TransferModel, *, exactly: bool
) -> tuple[np.ndarray, bool]:
    shards, rows = dataset.shards_of(split), dataset.rows(split)
    inference = trace_inference(model, graph=run.config.publish.graph)
    work = InferenceWork(model, inference)
    forward = None if exactly else forward_of(work, engine=run.config.features.engine)
    batch_size = forward.batch_size if forward else run.config.training.batch_size
    stored = stored_images(run.store, shards, image_input=model.backbone.image_input, batch_size=batch_size)
    images = (each for each, _ in stored)
    answers = forward.map(images) if forward else map(work.plain, images)
    found = []
    with progress(f"evaluate {split}", total=rows) as advance:
        for (probabilities,) in answers:
            found.append(probabilities)
            advance(len(probabilities))
    return np.concatenate(found), exactly


GALLERY_SIZE = 24


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    split: str | None = None,
    exactly: bool = False,
    serving: ServingAnswers | None = None,
) -> int:
    """Evaluate a finished run and store the report. Returns its number in the run's log of reports.

    `split`: default is the test split, or validation if there is no test split. `exactly`: use the exported graph;
    otherwise the fastest way, whose predictions differ only by rounding. `serving`: predictions of the version that
    serves, for comparison. Raises TrainingError if the run is not finished, DatasetError if the split is empty,
    OutOfMemoryError.
    """
    split = split or dataset.held_out_split
    if not dataset.rows(split):
        raise DatasetError(
            f"Split `{split}` of {dataset.reference} is empty, there is nothing to evaluate on.",
            advice="Set dataset.test or dataset.validation above 0.",
        )
    model, checkpoint = restore_model(run, dataset)
    batch_size = run.config.training.batch_size
    with memory_explained(f"Evaluating on {batch_size} images at a time", advice=FOR_EVALUATION):
        probabilities, is_exact = probabilities_of(run, dataset, split, model, exactly=exactly)
    predictions = Predictions(*_keys_and_labels(run.store, dataset.shards_of(split)), probabilities, dataset.classes)
    mistakes = worst_mistakes(predictions, count=GALLERY_SIZE)
    history = list(checkpoint.progress.history)
    shares = run.config.dataset
    splitting = dataset.splitting or Splitting(validation=shares.validation, test=shares.test)
    report = Report(
        name=run.config.name,
        dataset=dataset.reference,
        run_id=run.id,
        split=split,
        base=run.config.base.model.rpartition("/")[2],
        metrics=compute_metrics(predictions),
        history=history,
        mistakes=mistakes,
        counts=dataset.counts,
        split_by=splitting.title,
        config=run.config.model_dump(mode="json", exclude={"storage"}),
        validation_accuracy=None
        if split == "validation"
        else final_row(history, run.config.phases).validation_accuracy,
        graph=run.config.publish.graph,
        is_exact=is_exact,
        untrained_classes=tuple(model.untrained_classes),
        rounds_coarsely=rounds_coarsely(model),
        kept=kept_epoch(history, run.config.phases),
        weights=run.config.base.weights_title,
        serving=compare_with_serving(predictions, dataset.reference, split, serving) if serving else None,
    )
    # Imported late: matplotlib takes a second, which reading a report does not need.
    from transfer.evaluation.page import render_html

    thumbnails = _images_of(run.store, dataset.shards_of(split), {mistake.key for mistake in mistakes})
    depth = run.config.dataset.image_depth
    page = render_html(report, thumbnails=thumbnails, storage=run.store.uri, depth=depth)
    files = {
        layout.REPORT: report.to_json(),
        layout.REPORT_PAGE: page.encode(),
        layout.PREDICTIONS: _to_parquet(predictions),
    }
    number = _free_number(run)
    for name, data in files.items():
        run.store.put(layout.report_file(run.folder, number, name), data)
    digests = {name: sha256_hex(data) for name, data in files.items()}
    entry = ReportEntry(split=split, files=digests, at=now_utc())
    return run.reports.append(entry.model_dump(), number=number)


def _free_number(run: Run) -> int:
    """The next number without any object: a process that was killed may have left objects under its number."""
    folder = layout.reports_log(run.folder)
    return max((int(layout.below(folder, item.name)[0][:8]) for item in run.store.list(f"{folder}/")), default=0) + 1


def _keys_and_labels(store: Store, shards: list[Shard]) -> tuple[list[str], np.ndarray]:
    tables = [read_shard(store, shard, columns=["key", "label"]) for shard in shards]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    return keys, np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int32)


def load_report(run: Run, number: int) -> tuple[Report, Predictions]:
    """Read a stored report and its predictions. Raises CorruptObjectError if they are damaged."""
    entry = run.reports.read_as(ReportEntry, number)

    def read(name: str) -> bytes:
        return run.store.read_verified(layout.report_file(run.folder, number, name), entry.files[name])

    report = Report.from_json(read(layout.REPORT))
    table = pq.read_table(io.BytesIO(read(layout.PREDICTIONS)))
    classes = [row.name for row in report.metrics.per_class]
    probabilities = np.stack(table["probabilities"].to_numpy())
    return report, Predictions(table["key"].to_pylist(), table["label"].to_numpy(), probabilities, classes)


def held_out_images(run: Run, dataset: Dataset, split: str, count: int) -> list[bytes]:
    """Read the encoded bytes of the first `count` images of a split, in the order of its predictions."""
    images: list[bytes] = []
    for shard in dataset.shards_of(split):
        if len(images) >= count:
            break
        images += read_shard(run.store, shard, columns=["image"])["image"].slice(0, count - len(images)).to_pylist()
    return images


def _images_of(store: Store, shards: list[Shard], keys: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in shards:
        table = read_shard(store, shard, columns=["key", "image"])
        chosen = table.filter(pc.is_in(table["key"], value_set=pa.array(sorted(keys), pa.string())))
        found.update(zip(chosen["key"].to_pylist(), chosen["image"].to_pylist(), strict=True))
    return found


def _to_parquet(predictions: Predictions) -> bytes:
    buffer = io.BytesIO()
    table = pa.table(
        {
            "key": pa.array(predictions.keys, pa.string()),
            "label": predictions.labels,
            "probabilities": pa.array(list(predictions.probabilities), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, buffer)
    return buffer.getvalue()
