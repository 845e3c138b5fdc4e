"""Evaluate a finished run on held-out images and keep the report.

runs/<run id>/reports/<00000001>/report.json, report.html, predictions.parquet
runs/<run id>/reports/<00000001>.json          written last: which split, and the digests of the three
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transfer.dataset.manifest import Dataset, Shard
from transfer.dataset.shards import read_shard
from transfer.errors import DatasetError
from transfer.evaluation.answers import probabilities_of
from transfer.evaluation.metrics import compute_metrics, worst_mistakes
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report, render_html
from transfer.memory import FOR_EVALUATION, memory_explained
from transfer.storage import Store, sha256_hex
from transfer.training.inference import rounds_coarsely
from transfer.training.restore import restore_model
from transfer.training.run import Run

GALLERY_SIZE = 24


def evaluate_run(run: Run, dataset: Dataset, *, split: str | None = None, exactly: bool = False) -> int:
    """Evaluate a finished run and store the report; returns its number in the run's log of reports.

    `split`: default is the test split, or validation where there is no test split. `exactly`: by the very graph that is
    exported; else by the fastest way to the same answers, but for rounding. Raises TrainingError when the run is not
    finished, DatasetError when the split is empty, OutOfMemoryError.
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
    report = Report(
        name=run.config.name,
        dataset=dataset.reference,
        run_id=run.id,
        split=split,
        base=run.config.base.model.rpartition("/")[2],
        metrics=compute_metrics(predictions),
        history=list(checkpoint.progress.history),
        mistakes=mistakes,
        counts=dataset.counts,
        config=run.config.model_dump(mode="json", exclude={"storage"}),
        graph=run.config.publish.graph,
        is_exact=is_exact,
        rounds_coarsely=rounds_coarsely(model),
    )
    thumbnails = _images_of(run.store, dataset.shards_of(split), {mistake.key for mistake in mistakes})
    files = {
        "report.json": report.to_json(),
        "report.html": render_html(report, thumbnails=thumbnails).encode(),
        "predictions.parquet": _to_parquet(predictions),
    }
    number = _free_number(run)
    for name, data in files.items():
        run.store.put(f"{run.prefix}/reports/{number:08d}/{name}", data)
    digests = {name: sha256_hex(data) for name, data in files.items()}
    return run.reports.append({"split": split, "files": digests}, number=number)


def _free_number(run: Run) -> int:
    """The next number that nobody has written to: one who was killed halfway may have left other bytes under his."""
    folder = f"{run.prefix}/reports/"
    return max((int(item.name.removeprefix(folder)[:8]) for item in run.store.list(folder)), default=0) + 1


def _keys_and_labels(store: Store, shards: list[Shard]) -> tuple[list[str], np.ndarray]:
    tables = [read_shard(store, shard, columns=["key", "label"]) for shard in shards]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    return keys, np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int32)


def load_report(run: Run, number: int) -> tuple[Report, Predictions]:
    """Read a stored report and its predictions. Raises CorruptObjectError for a wrong byte."""
    entry = run.reports.read(number)

    def read(name: str) -> bytes:
        return run.store.read_verified(f"{run.prefix}/reports/{number:08d}/{name}", entry["files"][name])

    report = Report.from_json(read("report.json"))
    table = pq.read_table(io.BytesIO(read("predictions.parquet")))
    classes = [row.name for row in report.metrics.per_class]
    probabilities = np.stack(table["probabilities"].to_numpy())
    return report, Predictions(table["key"].to_pylist(), table["label"].to_numpy(), probabilities, classes)


def held_out_images(run: Run, dataset: Dataset, split: str, count: int) -> list[bytes]:
    """Encoded bytes of the first `count` images of a split, in the order of its predictions."""
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
