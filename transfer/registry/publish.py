"""Publication of an evaluated run as a model version."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from transfer.backbone.load import weights_origin
from transfer.catalog.model import (
    BaseDigest,
    ModelVersion,
    Parity,
    Pretrained,
    Provenance,
    ReportedMetrics,
    TrainedWeights,
)
from transfer.catalog.run import CheckpointEntry
from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.evaluation.stored import StoredReport
from transfer.evaluation.units import first_images
from transfer.registry.export import export
from transfer.registry.export_proof import HALF_PRECISION_TOLERANCE, TOLERANCE, prove_parity
from transfer.registry.versions import publish_once, published_version, upload_version
from transfer.runtime.fork_server import start_server
from transfer.storage import Store
from transfer.training.model import TransferModel
from transfer.training.run import Run
from transfer.training.shared_models import restore_model

logger = logging.getLogger(__name__)


def publish_run(run: Run, dataset: Dataset, *, report_number: int, again: bool = False) -> ModelVersion:
    """Export a run's model, prove that the export predicts as evaluated, and add it to the registry.

    A run is published once: publishing it again returns the existing version. With `again`, the present code exports a
    new version. `report_number`: of the report whose predictions the export is compared with. Raises ParityError if the
    export predicts something else, PublishConflictError if another process published the run meanwhile.
    """
    published = published_version(run.store, run.config.name, run.id)
    if published is not None and not again:
        logger.info("Run %s is published already, as version %d.", run.id, published.number)
        return published
    # The fork server of the proof's processes imports TensorFlow while this process exports the model.
    start_server()
    stored = StoredReport(run, report_number)
    report, parity_images = stored.report, run.config.publish.parity_images
    expected = stored.predictions(0, parity_images).probabilities
    model, checkpoint = restore_model(run, dataset)
    weights = run.checkpoints.read_as(CheckpointEntry, checkpoint.number).weights
    provenance = Provenance(
        run=run.id,
        dataset=dataset.reference,
        base=BaseDigest(model=run.config.base.model, sha256=model.digest, weights_from=weights_origin(run.config.base)),
        weights=TrainedWeights(checkpoint=checkpoint.number, sha256=weights),
        report=report_number,
        metrics=ReportedMetrics(loss=report.metrics.loss, accuracy=report.metrics.accuracy, split=report.split),
        config=run.config.model_dump(mode="json", exclude={"storage"}),
    )
    images = first_images(run.store, dataset.shards_of(report.split), parity_images)
    version = upload_proven(
        run.store,
        run.config,
        model,
        provenance,
        background=dataset.background,
        images=images,
        expected=expected,
        tolerance=HALF_PRECISION_TOLERANCE if report.rounds_coarsely else TOLERANCE,
    )
    return publish_once(run.store, version, run=run.id, instead_of=published)


def upload_proven(
    store: Store,
    config: Config,
    model: TransferModel,
    provenance: Provenance | Pretrained,
    *,
    background: str | None,
    images: list[bytes],
    expected: np.ndarray,
    tolerance: float,
) -> ModelVersion:
    """Export a model, prove that the export answers `images` as `expected`, and upload it: a version not recorded yet.

    `background`: color behind transparent pixels. `expected`: float32 [images, classes]. Raises ParityError if a
    probability differs by more than `tolerance`.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "saved_model"
        origin = provenance.model_dump(mode="json", exclude={"parity"})
        export(model, exported, provenance=origin, graph=config.publish.graph, background=background)
        differences = prove_parity(exported, images, expected, tolerance=tolerance)
        parity = Parity(images=len(images), largest_difference=max(differences.values()), by_loader=dict(differences))
        return upload_version(
            store,
            config.name,
            exported,
            classes=model.classes,
            untrained_classes=model.untrained_classes,
            provenance=provenance.model_copy(update={"parity": parity}),
        )
