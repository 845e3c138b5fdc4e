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
    """A scikit-learn estimator: a pretrained network with a new head, fitted to paths of images.

    Args:
        model: String. The pretrained network, `base.model`.
        image_size: Integer, or pair of integers. Size of the images that the network takes, in pixels: the side of a
            square, or height and width.
        unfreeze: Integer, `all`, name of a layer, or a list of them. Depth of each phase: 0 trains the head, n also the
            last n blocks. Default: the phases that `transfer init` writes for this number of images (fewer than 1,000:
            the head, until validation stops improving).
        epochs: Integer or list of integers. Passes over the training images, for all phases or one for each. Default:
            as for `unfreeze`.
        learning_rate: Float or list of floats. Peak learning rate, for all phases or one for each. Default: as for
            `unfreeze`; for phases that `unfreeze` makes 1e-3 for the head and 1e-5 for blocks.
        validation: Float above 0 and below 1. Share of the images of `fit` that is held out for early stopping and for
            the history.
        changes: Mapping from dotted keys of the configuration to values, `{"training.batch_size": 16}`.
        storage: Folder, `s3://bucket/prefix`, mapping or `StorageConfig`. Datasets, cached features and runs are stored
            here, so the frozen part runs once for each image over all fits, folds and parameters. Default: a temporary
            folder, which is removed with the fitted run; such a classifier cannot be pickled.
        random_state: Integer. Seed of the head's initial weights, the order of images, dropout and augmentation.

    Example:
        >>> from pathlib import Path
        >>> paths = sorted(Path("flower_photos").glob("*/*.jpg"))
        >>> labels = [path.parent.name for path in paths]
        >>> classifier = transfer.ImageClassifier("MobileNetV2", image_size=96).fit(paths, labels)
        >>> classifier.classes_
        array(['flower', 'temple'], dtype='<U6')
        >>> accuracy = classifier.score(paths, labels)
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
            X: Sequence of n paths or `s3://` addresses of images.
            y: Sequence or array [n]. Label of each image, of any type whose texts differ.

        Returns:
            The classifier itself. `classes_` is an array [classes] of the labels, `run_` the finished run.

        Raises:
            DatasetError: X and y have different lengths, or images cannot be used.
            TransferError: Any other kind, as `transfer.train` raises.

        Example:
            >>> from pathlib import Path
            >>> paths = sorted(Path("flower_photos").glob("*/*.jpg"))
            >>> labels = [path.parent.name for path in paths]
            >>> classifier = transfer.ImageClassifier(image_size=96).fit(paths, labels)
            >>> accuracy = classifier.run_.metrics.accuracy
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
        """Predict the most probable label of each image.

        Args:
            X: Sequence of n paths or `s3://` addresses of images.

        Returns:
            Array [n] of labels, each an element of `classes_`.

        Raises:
            NotFittedError: `fit` was not called. It is an exception of scikit-learn.
            DatasetError: An image cannot be read or decoded, or a path names several, as a folder does.

        Example:
            >>> from pathlib import Path
            >>> paths = sorted(Path("flower_photos").glob("*/*.jpg"))
            >>> labels = [path.parent.name for path in paths]
            >>> classifier = transfer.ImageClassifier(image_size=96).fit(paths, labels)
            >>> classifier.predict(paths[:3]).shape
            (3,)
        """
        best = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def predict_proba(self, X: Sequence[str | os.PathLike[str]]) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Predict the probability of each class for each image.

        Args:
            X: Sequence of n paths or `s3://` addresses of images.

        Returns:
            Array float64 [n, classes] of probabilities, columns in the order of `classes_`.

        Raises:
            NotFittedError: `fit` was not called. It is an exception of scikit-learn.
            DatasetError: An image cannot be read or decoded, or a path names several, as a folder does.

        Example:
            >>> from pathlib import Path
            >>> paths = sorted(Path("flower_photos").glob("*/*.jpg"))
            >>> labels = [path.parent.name for path in paths]
            >>> classifier = transfer.ImageClassifier(image_size=96).fit(paths, labels)
            >>> classifier.predict_proba(paths[:3]).shape
            (3, 2)
        """
        check_is_fitted(self)
        paths = list(X)
        found = self.run_.predict(paths)
        # Each path has one prediction or more; a row that belongs to no path would move all later ones.
        if len(found) != len(paths):
            raise DatasetError(
                f"X has {len(paths):,} paths, and {len(found):,} images are there; expected an image a path.",
                advice="Give the paths of images, not of folders, prefixes or lists. `run_.predict` takes those, too.",
            )
        if failed := [each for each in found if each.error]:
            raise DatasetError(
                f"{len(failed):,} of {len(found):,} images cannot be predicted. The first is {failed[0].image}: "
                f"{str(failed[0].error).rstrip('.')}.",
                advice="Leave them out, or call `run_.predict`, which gives each such image its `error`.",
            )
        rows = [[each.probabilities[name] for name in self._names] for each in found]
        return np.array(rows, np.float64).reshape(len(paths), len(self._names))

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
