"""Publication of an evaluated run as a model version."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from transfer.catalog.model import BaseDigest, ModelVersion, Parity, Provenance, ReportedMetrics, TrainedWeights
from transfer.catalog.run import CheckpointEntry
from transfer.dataset.manifest import Dataset
from transfer.errors import DifferentAnswersError, RegistryError
from transfer.evaluation.evaluate import evaluate_run, held_out_images, load_report
from transfer.registry.export import export
from transfer.registry.export_proof import HALF_PRECISION_TOLERANCE, TOLERANCE, prove_parity
from transfer.registry.published_model import answers_of_serving
from transfer.registry.versions import publish_once, published_version, upload_version
from transfer.runtime.fork_server import start_server
from transfer.training.run import Run
from transfer.training.shared_models import restore_model

logger = logging.getLogger(__name__)


def publish_run(run: Run, dataset: Dataset, *, report_number: int | None = None, again: bool = False) -> ModelVersion:
    """Export a run's model, prove that the export predicts as evaluated, and add it to the registry.

    A run is published once: publishing it again returns the existing version. With `again`, the present code exports a
    new version. `report_number`: default is the newest report. Raises RegistryError if the run has no report,
    ParityError if the export predicts something else, PublishConflictError if another process published the run
    meanwhile.
    """
    published = published_version(run.store, run.config.name, run.id)
    if published is not None and not again:
        logger.info("Run %s is published already, as version %d.", run.id, published.number)
        return published
    # The fork server of the proof's processes imports TensorFlow while this process exports the model.
    start_server()
    report_number = report_number or run.newest_report()
    if report_number is None:
        raise RegistryError(
            f"Run `{run.id}` has no report to prove the export against.", advice="Run `transfer evaluate` first."
        )
    report, predictions = load_report(run, report_number)
    asked = (run.config.publish.graph, tuple(dataset.untrained_classes))
    if (report.graph, report.untrained_classes) != asked:
        # Predictions of another graph or with other classes differ from the export by more than the proof accepts.
        logger.info("Run %s was evaluated with another graph or other classes, and is evaluated anew.", run.id)
        serving = answers_of_serving(run.config, run.store, dataset, report.split, but=run.id)
        report_number = evaluate_run(run, dataset, split=report.split, serving=serving)
        report, predictions = load_report(run, report_number)
    model, checkpoint = restore_model(run, dataset)
    weights = run.checkpoints.read_as(CheckpointEntry, checkpoint.number).weights
    provenance = Provenance(
        run=run.id,
        dataset=dataset.reference,
        base=BaseDigest(model=run.config.base.model, sha256=model.digest),
        weights=TrainedWeights(checkpoint=checkpoint.number, sha256=weights),
        report=report_number,
        metrics=ReportedMetrics(loss=report.metrics.loss, accuracy=report.metrics.accuracy, split=report.split),
        config=run.config.model_dump(mode="json", exclude={"storage"}),
    )
    images = held_out_images(run, dataset, report.split, run.config.publish.parity_images)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "saved_model"
        graph = run.config.publish.graph
        origin = provenance.model_dump(mode="json", exclude={"parity"})
        export(model, exported, provenance=origin, graph=graph, background=dataset.background)
        try:
            differences = prove_parity(
                exported,
                images,
                predictions.probabilities[: len(images)],
                tolerance=HALF_PRECISION_TOLERANCE if report.rounds_coarsely else TOLERANCE,
            )
        except DifferentAnswersError as error:
            if report.is_exact:
                raise
            logger.info("%s It was evaluated in a faster way, and is evaluated anew by its graph.", error.message)
            serving = answers_of_serving(run.config, run.store, dataset, report.split, but=run.id)
            exact = evaluate_run(run, dataset, split=report.split, exactly=True, serving=serving)
            return publish_run(run, dataset, report_number=exact, again=again)
        parity = Parity(images=len(images), largest_difference=max(differences.values()), by_loader=dict(differences))
        version = upload_version(
            run.store,
            run.config.name,
            exported,
            classes=model.classes,
            untrained_classes=model.untrained_classes,
            provenance=provenance.model_copy(update={"parity": parity}),
        )
        return publish_once(run.store, version, run=run.id, instead_of=published)
