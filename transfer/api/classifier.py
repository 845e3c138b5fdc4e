"""A classifier of image files with the interface of scikit-learn."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from transfer.api.configure import EachPhase, Storage
from transfer.api.jobs import load_run, train
from transfer.api.results import TrainedRun
from transfer.dataset.sources.base import normal_class_name
from transfer.errors import DatasetError
from transfer.starter import training_for


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """A pretrained network with a new head, for paths of images instead of a matrix of features.

    Args:
        model: The pretrained network, `base.model`.
        image_size: Size in pixels of the images that the network takes: the side of a square, or height and width.
        unfreeze: Depth of each phase: 0 trains the head, n the last n blocks too. Default: with the next two, what
            `transfer init` would write for so many images, such as a head until validation stops improving.
        epochs: Passes over the training images, for all phases or one for each.
        learning_rate: Peak learning rate, likewise. Default: 1e-3 for the head, 1e-5 for blocks.
        validation: Share of the images of `fit` that is kept for early stopping and for the history; above 0.
        changes: Values by dotted key of the configuration, `{"training.batch_size": 16}`.
        storage: Where datasets and runs are kept: then the frozen part is computed once an image for all fits, folds
            and parameters. Default: a temporary folder, which goes with the classifier and cannot be pickled.
        random_state: Decides initial weights, the order of images, dropout and augmentation.

    Example:
        >>> classifier = transfer.ImageClassifier("ResNet50").fit(paths, labels)
        >>> classifier.predict(["rose.jpg"]), classifier.score(other_paths, other_labels)
    """

    def __init__(
        self,
        model: str = "MobileNetV2",
        *,
        image_size: int | tuple[int, int] = 224,
        unfreeze: EachPhase | None = None,
        epochs: EachPhase | None = None,
        learning_rate: EachPhase | None = None,
        validation: float = 0.15,
        changes: Mapping[str, Any] | None = None,
        storage: Storage | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.image_size = image_size
        self.unfreeze = unfreeze
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.validation = validation
        self.changes = changes
        self.storage = storage
        self.random_state = random_state

    def fit(self, X: Sequence[str | os.PathLike[str]], y: Sequence[Any]) -> Self:  # noqa: N803 - scikit-learn's name
        """Train on images.

        Args:
            X: Paths or `s3://` addresses of images [n].
            y: Their labels [n].

        Returns:
            The classifier: `classes_` are the labels [classes], `run_` is the finished run.

        Raises:
            DatasetError: X and y have different lengths, or images cannot be used.
        """
        paths, labels = [os.fspath(path) for path in X], np.asarray(y)
        if labels.ndim != 1 or len(paths) != len(labels):
            raise DatasetError(
                f"There are {len(paths)} images and labels of shape {list(labels.shape)}; expected a label an image.",
                advice="Give the paths and their labels in the same order.",
            )
        classes, indices = np.unique(labels, return_inverse=True)
        names = [normal_class_name(str(label)) for label in classes]
        if len({*names}) < len(names) or not all(names):
            raise DatasetError(
                f"The labels {classes.tolist()} are no names of classes that can be told apart.",
                advice="Give labels that differ by more than spaces and Unicode forms, and none that is empty.",
            )
        folder = tempfile.mkdtemp(prefix="transfer-") if self.storage is None else None
        try:
            run = self._trained_on(paths, [names[index] for index in indices], storage=folder or self.storage)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if folder is not None:
            weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
        self.classes_, self._names, self._is_temporary, self.run_ = classes, names, folder is not None, run
        return self

    def predict(self, X: Sequence[str | os.PathLike[str]]) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """The most probable label of each image [n]; `X`: paths or `s3://` addresses [n]."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def predict_proba(self, X: Sequence[str | os.PathLike[str]]) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Probabilities, float [n, classes], in the order of `classes_`; `X`: paths or `s3://` addresses [n]."""
        check_is_fitted(self)
        found = self.run_.predict(list(X))
        return np.array([[each.probabilities[name] for name in self._names] for each in found])

    def _trained_on(self, paths: Sequence[str], names: Sequence[str], *, storage: Any) -> TrainedRun:
        with tempfile.TemporaryDirectory(prefix="transfer-table-") as folder:
            table = Path(folder, "images.csv")
            _write_table(table, paths, names)
            dataset = {"source": str(table), "validation": self.validation, "test": 0.0}
            base = {"model": self.model}
            return train(
                {"name": "image-classifier", "dataset": dataset, "base": base, **training_for(len(paths))},
                {"publish.enabled": False, "training.seed": self.random_state, **(self.changes or {})},
                image_size=self.image_size,
                unfreeze=self.unfreeze,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                storage=storage,
                verbose=False,
            )

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        run = state.pop("run_", None)
        if run is None:
            return state
        if state["_is_temporary"]:
            raise DatasetError(
                "This classifier keeps its run in a temporary folder, which another process would not find.",
                advice="Give it a `storage` before `fit`.",
            )
        return {**state, "_run_id": run.id, "_run_storage": run.config.storage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        run_id, storage = state.pop("_run_id", None), state.pop("_run_storage", None)
        super().__setstate__(state)
        if run_id is not None:
            self.run_ = load_run(run_id, storage)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        return tags


def _write_table(table: Path, paths: Sequence[str], names: Sequence[str]) -> None:
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for path, name in zip(paths, names, strict=True):
            writer.writerow([path if "://" in path else Path(path).absolute(), name])
