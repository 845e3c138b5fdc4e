"""Results of jobs as objects: figures, tables, pages and predictions."""

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

from transfer.api.images import Image, Prediction, predictions
from transfer.catalog.model import ModelVersion
from transfer.config import Config, DatasetConfig, StorageConfig
from transfer.dataset.manifest import Dataset
from transfer.evaluation.metrics import Metrics
from transfer.evaluation.report import Report
from transfer.registry.versions import download_version
from transfer.runtime.numbers import percent
from transfer.runtime.startup import import_tensorflow
from transfer.screening.result import ScreenResult
from transfer.storage import Store
from transfer.training.run import Run
from transfer.tuning.lr_curve import FoundRate
from transfer.tuning.records import SweepResult

if TYPE_CHECKING:
    import keras
    import pandas as pd

    from transfer.registry.published_model import Batch


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished run: its figures, its report, and its model. `train` and `load_run` return it.

    Example:
        >>> run = transfer.train("flowers.yaml")
        >>> run.confusion.shape == (len(run.classes), len(run.classes))
        True
        >>> losses = run.history[["loss", "validation_loss"]]
    """

    run: Run
    """The run in storage: `store` and `folder`."""
    dataset: Dataset
    """The dataset version that the run was trained on."""
    report: Report
    """Every figure of the report, as plain data."""
    report_uri: str
    """Path or address of the report's page."""
    published: ModelVersion | None
    """The model version that the run was published as; None if `publish.enabled` is false."""
    what_serves: str | None
    """Whether that version serves, and why, in sentences. None if the run was not published, or was loaded."""

    @property
    def id(self) -> str:
        """Id of the run, its name in storage."""
        return self.run.id

    @property
    def version(self) -> int | None:
        """Number of the version that the run was published as; None if `publish.enabled` is false."""
        return self.published.number if self.published else None

    @property
    def config(self) -> Config:
        """Configuration that the run was trained with."""
        return self.run.config

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return self.dataset.classes

    @property
    def metrics(self) -> Metrics:
        """Figures on the held-out images: `accuracy`, `accuracy_interval`, `loss`, `per_class`, `confusion`.

        `accuracy` is from 0 to 1, `accuracy_interval` its 95 % interval (Wilson, 1927), `loss` the mean cross-entropy
        in nats.
        """
        return self.report.metrics

    @property
    def history(self) -> pd.DataFrame:
        """One row for each epoch, by `epoch`, which counts from 0 over all phases.

        Columns: phase, loss and accuracy (training), validation_loss and validation_accuracy, learning_rate, seconds,
        images_per_second.
        """
        import pandas as pd

        return pd.DataFrame(row.model_dump() for row in self.report.history).set_index("epoch")

    @property
    def confusion(self) -> pd.DataFrame:
        """Number of images by true class (rows) and predicted class (columns), [classes, classes]."""
        import pandas as pd

        truth, predicted = (pd.Index(self.classes, name=name) for name in ("truth", "predicted"))
        return pd.DataFrame(self.metrics.confusion, index=truth, columns=predicted)

    @property
    def mistakes(self) -> pd.DataFrame:
        """The most confident mistakes, at most 24, the most confident first.

        Columns: key of the image, truth, truth_probability, predicted, predicted_probability.
        """
        import pandas as pd

        columns = ["key", "truth", "truth_probability", "predicted", "predicted_probability"]
        return pd.DataFrame([each.model_dump() for each in self.report.mistakes], columns=columns)

    @property
    def baselines(self) -> pd.DataFrame:
        """Simple answers to the held-out images, by name; without rows if `baselines` is `none`.

        Columns: images (on which both answered), accuracy (of the baseline), run_accuracy, difference (of the run
        minus the baseline), low and high (its 95 % interval). `report.baselines.verdict` says in words what follows.
        """
        import pandas as pd

        made = self.report.baselines.made if self.report.baselines else ()
        rows = [
            (
                each.name,
                each.images,
                each.accuracy,
                each.run_accuracy,
                each.difference,
                *each.interval.model_dump().values(),
            )
            for each in made
        ]
        columns = ["name", "images", "accuracy", "run_accuracy", "difference", "low", "high"]
        return pd.DataFrame(rows, columns=columns).set_index("name")

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """Predict images with the trained model, published or not.

        Args:
            images: One image or a sequence of images. An image is a path, an `s3://` address, the bytes of a file, a
                Pillow image, or pixels uint8 [height, width, 3] in RGB. A folder or prefix stands for the images in it.

        Returns:
            One Prediction for each image, in order. That of an image in a sequence or folder that cannot be read or
            decoded has an `error`.

        Raises:
            DatasetError: An image that is given alone cannot be read or decoded, or something given is no image: an
                array of another type or shape, an address of the web.
            StorageError: A bucket cannot be read.

        Example:
            >>> run = transfer.train("flowers.yaml")
            >>> prediction = run.predict("photo.jpg")[0]
            >>> prediction.label in run.classes
            True
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
        """Build the model as a `keras.Model` of Keras's own layers, with a copy of the weights.

        Returns:
            Model from pixels, float32 [batch, height, width, channels] in 0..255, to probabilities, float32
            [batch, classes].

        Raises:
            BackboneError: The base is a SavedModel, which has no Keras layers.

        Example:
            >>> run = transfer.train("flowers.yaml")
            >>> model = run.keras_model()
            >>> model.output_shape == (None, len(run.classes))
            True
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
    """A finished sweep, and the run of its winner. `sweep` returns it.

    Example:
        >>> rates = {"phases.0.learning_rate": transfer.log_uniform(1e-4, 1e-2)}
        >>> found = transfer.sweep("flowers.yaml", rates, trials=2)
        >>> list(found.values)
        ['phases.0.learning_rate']
        >>> len(found.trials)
        2
    """

    result: SweepResult
    """The sweep's records, as plain data."""
    best: TrainedRun
    """The run of the winning trial, trained to its end and evaluated."""
    page_uri: str
    """Path or address of the sweep's page."""

    @property
    def trials(self) -> pd.DataFrame:
        """One row for each trial, by `number`, which counts from 1.

        Columns: each searched key (dotted), value (the sweep's metric on the validation split), status, epochs,
        seconds.
        """
        import pandas as pd

        rows = (
            {"number": trial.number, **trial.values, "value": trial.value, "status": trial.status}  # noqa: PD011
            | {"epochs": len(trial.rows), "seconds": trial.seconds}
            for trial in self.result.trials
        )
        return pd.DataFrame(rows).set_index("number")

    @property
    def values(self) -> dict[str, Any]:
        """Values of the winning trial, by dotted key."""
        winner = next(trial for trial in self.result.trials if trial.number == self.result.winner)
        return winner.values  # noqa: PD011 - no pandas

    def __repr__(self) -> str:
        return f"<Sweep {self.result.id}: {len(self.result.trials)} trials, best {self.values}, {self.page_uri}>"


@dataclass(frozen=True, repr=False)
class LearningRates:
    """The result of a learning-rate range test. `find_learning_rate` returns it.

    Example:
        >>> found = transfer.find_learning_rate("flowers.yaml", low=1e-5, high=1.0, steps=40)
        >>> list(found.curve.columns)
        ['learning_rate', 'loss']
    """

    found: FoundRate
    """The test as plain data: what was tested, and its curve."""
    page_uri: str
    """Path or address of the test's page."""

    @property
    def suggestion(self) -> float:
        """Learning rate at which the smoothed loss falls fastest."""
        return self.found.suggestion

    @property
    def curve(self) -> pd.DataFrame:
        """One row for each step. Columns: learning_rate, and loss of the step's batch, not smoothed."""
        import pandas as pd

        return pd.DataFrame({"learning_rate": self.found.curve.rates, "loss": self.found.curve.losses})

    def __repr__(self) -> str:
        return f"<LearningRates: suggestion {self.suggestion:.1e}, {self.page_uri}>"


@dataclass(frozen=True, repr=False)
class Screen:
    """A comparison of pretrained networks. `screen` returns it.

    Example:
        >>> found = transfer.screen("flowers.yaml", bases=[transfer.load_config("flowers.yaml").base.model])
        >>> found.table.accuracy.is_monotonic_decreasing
        True
    """

    result: ScreenResult
    """The comparison as plain data."""
    page_uri: str
    """Path or address of the page."""

    @property
    def table(self) -> pd.DataFrame:
        """One row for each network and cut, the best first.

        Columns: base, tap (inner layer that the features come from, or None), accuracy (of the linear probe), low and
        high (its 95 % interval), neighbours (accuracy), logme, size (numbers of an image's features), ms (of a forward
        pass for an image), size_bytes (of the weights), extraction_s and epoch_s (estimated seconds to compute all
        features once, and of an epoch that trains all blocks).
        """
        import pandas as pd

        kept = ["base", "tap", "accuracy", "neighbours", "logme", "size", "ms", "size_bytes"]
        rows = [
            {key: getattr(cut, key) for key in kept}
            | cut.interval.model_dump()
            | {"extraction_s": self.result.extraction_s(cut), "epoch_s": self.result.epoch_s(cut)}
            for cut in self.result.cuts
        ]
        return pd.DataFrame(rows, columns=[*kept, "low", "high", "extraction_s", "epoch_s"])

    @property
    def left_out(self) -> dict[str, str]:
        """Reason for each network that cannot be had."""
        return {each.base: each.reason for each in self.result.failed}

    @property
    def settings(self) -> list[str]:
        """Arguments of `--set` that train with the best network; empty if there is none."""
        return list(self.result.best.settings) if self.result.best else []

    def __repr__(self) -> str:
        best = self.result.best.title if self.result.best else None
        return f"<Screen of {len(self.result.cuts)} cuts: best {best}, {self.page_uri}>"


class Model:
    """A published version of a model, fetched to this machine. `load_model` returns it.

    Example:
        >>> model = transfer.load_model("flowers", "./storage")
        >>> model.name, model.version
        ('flowers', 1)
        >>> sorted(model.predict("photo.jpg")[0].probabilities) == sorted(model.classes)
        True
    """

    def __init__(self, store: Store, version: ModelVersion, storage: StorageConfig) -> None:
        """Fetch the files of a version and verify each one.

        Args:
            store: The opened storage.
            version: The version, as the registry lists it.
            storage: The section `storage`, with which `s3://` addresses of images are read.

        Raises:
            CorruptObjectError: A file does not have its digest.
            RegistryError: The version was removed.
        """
        import_tensorflow()

        from transfer.registry.published_model import PublishedModel

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
        """Origin of the version: its run, its dataset version, digests, versions of packages."""
        return self._version.provenance.model_dump(mode="json")

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """Predict images.

        Args:
            images: One image or a sequence of images. An image is a path, an `s3://` address, the bytes of a file, a
                Pillow image, or pixels uint8 [height, width, 3] in RGB. A folder or prefix stands for the images in it.

        Returns:
            One Prediction for each image, in order. That of an image in a sequence or folder that cannot be read or
            decoded has an `error`.

        Raises:
            DatasetError: An image that is given alone cannot be read or decoded, or something given is no image: an
                array of another type or shape, an address of the web.
            StorageError: A bucket cannot be read.

        Example:
            >>> model = transfer.load_model("flowers", "./storage")
            >>> probabilities = model.predict("photo.jpg")[0].probabilities
        """
        model = self._published
        trained = self._version.provenance.config["dataset"]
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
    """Make a temporary folder that is removed with an object.

    Args:
        owner: Any object. The folder is removed when it is garbage collected.

    Returns:
        Path of the folder.
    """
    folder = tempfile.mkdtemp(prefix="transfer-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _framed(page: str) -> str:
    """A page in an `iframe`, so that its styles do not change the notebook."""
    return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800" style="border:0"></iframe>'
