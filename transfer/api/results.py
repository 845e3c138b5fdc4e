"""What jobs leave behind, as objects to look at and to ask."""

from __future__ import annotations

import html
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.api.images import Batch, Image, Prediction, predictions
from transfer.catalog.model import ModelVersion
from transfer.config import Config, DatasetConfig, StorageConfig
from transfer.dataset.manifest import Dataset
from transfer.evaluation.metrics import Metrics
from transfer.evaluation.report import Report
from transfer.registry.versions import download_version
from transfer.runtime.numbers import percent
from transfer.runtime.startup import import_tensorflow
from transfer.storage import Store
from transfer.training.run import Run
from transfer.tuning.lr_curve import FoundRate
from transfer.tuning.records import SweepResult

if TYPE_CHECKING:
    import keras
    import pandas as pd


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished run: its figures, its report, and its model."""

    run: Run
    dataset: Dataset
    """The dataset version that it was trained on."""
    report: Report
    """Everything that is known of it, as plain data."""
    report_uri: str
    """Where its page is."""
    published: ModelVersion | None
    """The version that it was published as; None where `publish.enabled` is false."""
    what_serves: str | None
    """Whether that version serves, and why, in sentences; None without one, and for a run that was loaded."""

    @property
    def id(self) -> str:
        """Its name in storage."""
        return self.run.id

    @property
    def version(self) -> int | None:
        """Number of the version that it was published as; None where `publish.enabled` is false."""
        return self.published.number if self.published else None

    @property
    def config(self) -> Config:
        """What it was trained with."""
        return self.run.config

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return self.dataset.classes

    @property
    def metrics(self) -> Metrics:
        """Figures on the held-out images: `accuracy`, `accuracy_interval`, `loss`, `per_class`, `confusion`."""
        return self.report.metrics

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch: phase, loss, accuracy, the same of validation, learning_rate, seconds, images_per_second."""
        import pandas as pd

        return pd.DataFrame(row.model_dump() for row in self.report.history).set_index("epoch")

    @property
    def confusion(self) -> pd.DataFrame:
        """Images by true class (rows) and predicted class (columns)."""
        import pandas as pd

        truth, predicted = (pd.Index(self.classes, name=name) for name in ("truth", "predicted"))
        return pd.DataFrame(self.metrics.confusion, index=truth, columns=predicted)

    @property
    def mistakes(self) -> pd.DataFrame:
        """The surest mistakes, the surest first: key, truth, predicted and their probabilities."""
        import pandas as pd

        columns = ["key", "truth", "truth_probability", "predicted", "predicted_probability"]
        return pd.DataFrame([each.model_dump() for each in self.report.mistakes], columns=columns)

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """Answer images with the trained model, published or not.

        `images`: one or several of a path, a folder, an `s3://` address, the bytes of a file, an image of Pillow, and
        pixels uint8 [height, width, 3]. Returns a Prediction for each image, in order. Raises DatasetError for an image
        that cannot be answered, StorageError.
        """
        inference = self._inference

        def answer(batches: Iterator[Batch]) -> Iterable[np.ndarray]:
            return (inference.answer(pixels).numpy() for _, pixels in batches)

        return predictions(
            images,
            classes=self.classes,
            image_input=self.config.image_input,
            limits=self.config.dataset,
            storage=self.config.storage,
            answer=answer,
        )

    def keras_model(self) -> keras.Model:
        """The model as a `keras.Model` of Keras's own layers, with weights of its own.

        It takes float32 pixels [batch, height, width, 3] in 0..255 and answers probabilities [batch, classes].
        Raises BackboneError where the base is a SavedModel.
        """
        import_tensorflow()

        from transfer.api.keras_model import standalone_model
        from transfer.training.shared_models import restore_model

        model, _ = restore_model(self.run, self.dataset)
        return standalone_model(model, name=self.config.name.replace("-", "_").replace(".", "_"))

    @cached_property
    def _inference(self) -> Any:
        import_tensorflow()

        from transfer.training.inference import trace_inference
        from transfer.training.shared_models import restore_model

        model, _ = restore_model(self.run, self.dataset)
        return trace_inference(model, graph=self.config.publish.graph)

    def __repr__(self) -> str:
        metrics = self.metrics
        interval = f"{percent(metrics.accuracy_interval.low)} to {percent(metrics.accuracy_interval.high)}"
        accuracy = f"{percent(metrics.accuracy)} of {metrics.images:,} {self.report.split} images ({interval})"
        return f"<TrainedRun {self.id}: {accuracy}, {self.report_uri}>"

    def _repr_html_(self) -> str:
        """The report, for a notebook."""
        store = self.run.store
        return _framed(store.read(self.report_uri.removeprefix(f"{store.uri}/")).decode())


@dataclass(frozen=True, repr=False)
class Sweep:
    """A sweep that ended, and the run of its winner."""

    result: SweepResult
    """Everything that is known of it, as plain data."""
    best: TrainedRun
    """The run of the trial that won, trained to its end and evaluated."""
    page_uri: str
    """Where its page is."""

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial: number, what it tried by dotted key, value (the sweep's metric), status, epochs, seconds."""
        import pandas as pd

        rows = (
            {"number": trial.number, **trial.values, "value": trial.value, "status": trial.status}  # noqa: PD011
            | {"epochs": len(trial.rows), "seconds": trial.seconds}
            for trial in self.result.trials
        )
        return pd.DataFrame(rows).set_index("number")

    @property
    def values(self) -> dict[str, Any]:
        """What the winner tried, by dotted key."""
        winner = next(trial for trial in self.result.trials if trial.number == self.result.winner)
        return winner.values  # noqa: PD011 - no pandas

    def __repr__(self) -> str:
        return f"<Sweep {self.result.id}: {len(self.result.trials)} trials, best {self.values}, {self.page_uri}>"


@dataclass(frozen=True, repr=False)
class LearningRates:
    """What a learning-rate range test found."""

    found: FoundRate
    page_uri: str
    """Where its page is."""

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest."""
        return self.found.suggestion

    @property
    def curve(self) -> pd.DataFrame:
        """The loss at each rate."""
        import pandas as pd

        return pd.DataFrame({"learning_rate": self.found.curve.rates, "loss": self.found.curve.losses})

    def __repr__(self) -> str:
        return f"<LearningRates: suggestion {self.suggestion:.1e}, {self.page_uri}>"


class Model:
    """A published version of a model, whose files are on this machine."""

    def __init__(self, store: Store, version: ModelVersion, storage: StorageConfig) -> None:
        """Fetch the files of `version`, each verified. Raises CorruptObjectError, RegistryError when it is removed."""
        import_tensorflow()

        from transfer.registry.served import PublishedModel

        self._version = version
        self._storage = storage
        self._published = PublishedModel(version, download_version(store, version, folder_of(self)))

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._version.model

    @property
    def version(self) -> int:
        """Number of the version."""
        return self._version.number

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return list(self._version.classes)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from: the run, the dataset version, digests, versions of packages."""
        return self._version.provenance

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """Answer images, as `TrainedRun.predict` does."""
        model = self._published
        trained = self._version.provenance["config"]["dataset"]
        kept = {key: trained[key] for key in ("max_pixels", "max_file_size_bytes") if key in trained}
        limits = DatasetConfig(source="images", background=model.background, **kept)
        return predictions(
            images,
            classes=self.classes,
            image_input=model.image_input,
            limits=limits,
            storage=self._storage,
            answer=lambda batches: model.answers(batches, engine="auto"),
        )

    def __repr__(self) -> str:
        return f"<Model {self.name}, version {self.version}, {len(self.classes)} classes>"


def folder_of(owner: object) -> Path:
    """A new temporary folder, which goes when its owner does."""
    folder = tempfile.mkdtemp(prefix="transfer-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _framed(page: str) -> str:
    """A whole page in a frame of its own: its styles stay away from the notebook's."""
    return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800" style="border:0"></iframe>'
