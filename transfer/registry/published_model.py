"""Prediction with published models: for images, for a dataset version, and with the version that serves."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from transfer.catalog.model import ModelVersion
from transfer.config import Config, ImageInput
from transfer.dataset.check import op_text
from transfer.dataset.index import read_images
from transfer.dataset.manifest import Dataset, Shard
from transfer.dataset.row_groups import BinaryColumn
from transfer.dataset.shards import read_shard
from transfer.dataset.splits import TRAIN
from transfer.errors import CorruptObjectError, DatasetError, ObjectNotFoundError, RegistryError, TrainingError
from transfer.evaluation.against import SameImages, ServingAnswers
from transfer.evaluation.evaluate import load_report
from transfer.evaluation.predictions import Predictions, in_classes
from transfer.features.forward import CHECKED_ROWS, TOLERANCE, Forward, forward_of
from transfer.features.frozen import FEATURE_CODE_VERSION
from transfer.features.network import traced, with_constants
from transfer.registry.describe import classes_in, never_trained_on
from transfer.registry.export import DESCRIPTION, EMBEDDINGS, FITTED
from transfer.registry.promote import read_serving
from transfer.registry.versions import download_version, load_version
from transfer.runtime.memory import FOR_PREDICTION, memory_explained
from transfer.runtime.progress import progress
from transfer.storage import Store
from transfer.training.run import load_run

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
Answers = Callable[[list[bytes]], dict[str, Any]]
"""From encoded images to the outputs of a published model, by name."""
Batch = tuple[list[bytes], np.ndarray]
"""n encoded images, and the same images decoded: float32 [n, height, width, 3] in 0..255."""
Engine = Literal["auto", "tensorflow", "openvino"]


def load_answers(store: Store, version: ModelVersion, folder: Path) -> Answers:
    """Load a published version as a function of n encoded images.

    The function returns `probabilities` float32 [n, classes], `class_index` int32 [n] and `class_name` bytes [n].
    `folder`: destination of the version's files. Raises CorruptObjectError for a wrong byte, RegistryError if the
    version is removed meanwhile, OutOfMemoryError. The function raises OutOfMemoryError, too, and RegistryError for an
    image that the version does not decode.
    """
    return PublishedModel(version, download_version(store, version, folder)).answer


class PublishedModel:
    """A loaded version, from files on this machine. Loading and prediction raise OutOfMemoryError."""

    def __init__(self, version: ModelVersion, files: Path) -> None:
        self.classes = version.classes
        self.subject, self.advice = f"Version {version.number} of {version.model}", FOR_PREDICTION
        with memory_explained(self.subject, advice=self.advice):
            # Held, because the variables of its signatures live only as long as this object.
            self._loaded = tf.saved_model.load(str(files))
        self._files = files
        # A prediction job answers several parts at a time, in threads.
        self._preparing = threading.Lock()
        self._ways: dict[tuple[Engine, bool], Forward | None] = {}

    @cached_property
    def image_input(self) -> ImageInput:
        """Size, fit and resizing of the network's input images."""
        described = self._description
        # An earlier release stretched each image to a square, and stored its side.
        side = described.get("image_size")
        return ImageInput(side, side) if side else ImageInput(**described["image_input"])

    @property
    def background(self) -> str | None:
        """Color behind transparent pixels, `#rrggbb`; None if the model drops the alpha channel."""
        background: str | None = self._description.get("background")
        return background

    @cached_property
    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self._files / DESCRIPTION).read_text(encoding="utf-8"))
        return described

    def answer(self, encoded: list[bytes]) -> dict[str, Any]:
        """Run the signature for encoded images. Returns its outputs by name."""
        work = f"{self.subject}, asked about at most {BATCH_SIZE} images at a time,"
        try:
            with memory_explained(work, advice=self.advice):
                answers = self._loaded.signatures["serving_default"](image_bytes=tf.constant(encoded))
                return {name: value.numpy() for name, value in answers.items()}
        except tf.errors.InvalidArgumentError as error:
            raise RegistryError(
                f"{self.subject} does not decode an image: {op_text(error)}.",
                advice="The dataset was made with another dataset.depth, or by another release, than the one that it "
                "was trained on. Promote a version that decodes such images with `transfer registry promote`.",
            ) from error

    @property
    def embedding_size(self) -> int | None:
        """Number of features of an image; None if the version was exported without them."""
        signature = self._loaded.signatures.get(EMBEDDINGS)
        return None if signature is None else int(signature.structured_outputs[EMBEDDINGS].shape[-1])

    def answers(self, batches: Iterator[Batch], *, engine: Engine) -> Iterator[np.ndarray]:
        """Yield probabilities float32 [n, classes] for each batch, in order: the first outputs of `outputs`."""
        return (probabilities for probabilities, *_ in self.outputs(batches, engine=engine))

    def outputs(
        self, batches: Iterator[Batch], *, engine: Engine, embeddings: bool = False
    ) -> Iterator[list[np.ndarray]]:
        """Yield [probabilities], float32 [n, classes], for each batch, in order; batches are read a little ahead.

        The fast forward pass predicts from the decoded images. If a release with other decoding exported the model, or
        the signature for encoded images predicts something else for the first images, that signature predicts all.
        `embeddings`: yield [probabilities, embeddings], float32 [n, embedding_size]. May be called from several
        threads. Raises FeaturesError if `engine` is `openvino` and OpenVINO cannot be used, RegistryError if there are
        no embeddings.
        """
        first = list(islice(batches, 1))
        if not first:
            return
        forward = self._forward(*first[0], engine=engine, embeddings=embeddings)
        if forward is None:
            yield from ([self.answer(encoded)["probabilities"]] for encoded, _ in chain(first, batches))
            return
        yield from forward.map(pixels for _, pixels in chain(first, batches))

    def _forward(self, encoded: list[bytes], pixels: np.ndarray, *, engine: Engine, embeddings: bool) -> Forward | None:
        """The fast forward pass, checked on a batch; None if the signature for encoded images must predict."""
        with self._preparing:
            if (engine, embeddings) not in self._ways:
                forward = None
                if self._decodes_alike(encoded, pixels):
                    forward = forward_of(FittedWork(self, embeddings=embeddings), engine=engine)
                    # The first rows decide which engine runs.
                    next(forward.map([pixels[:CHECKED_ROWS]]))
                elif embeddings:
                    raise RegistryError(
                        f"{self.subject} decodes images otherwise than this release, and has embeddings only of images "
                        "that are decoded already.",
                        advice="Publish its run again with this release: `transfer publish --again`.",
                    )
                self._ways[engine, embeddings] = forward
            return self._ways[engine, embeddings]

    def of_fitted(self, images: tf.Tensor, *, embeddings: bool = False) -> list[tf.Tensor]:
        """[probabilities] of fitted images, and [embeddings] if these are asked for, by one signature."""
        signatures = self._loaded.signatures
        if embeddings:
            answer = signatures[EMBEDDINGS](images=images)
            return [answer["probabilities"], answer[EMBEDDINGS]]
        # A model of an earlier release has no signature for them. It stretches images, which changes no fitted one.
        return [signatures[FITTED if FITTED in signatures else "pixels"](images=images)["probabilities"]]

    def _decodes_alike(self, encoded: list[bytes], pixels: np.ndarray) -> bool:
        """Whether this release decodes and resizes images as the release that exported the model."""
        if self._description.get("decoding", FEATURE_CODE_VERSION) != FEATURE_CODE_VERSION:
            return False
        by_signature = self.answer(encoded[:CHECKED_ROWS])["probabilities"]
        (by_pixels,) = self.of_fitted(tf.constant(pixels[:CHECKED_ROWS]))
        difference = float(np.max(np.abs(by_signature - by_pixels.numpy())))
        # In this form of the comparison, NaN counts as a difference.
        if difference <= TOLERANCE:
            return True
        logger.warning(
            "%s answers otherwise for images that are decoded here (by %.1e): its own decoder is used.",
            self.subject,
            difference,
        )
        return False


class FittedWork:
    """What a published model answers about fitted images, as work for a forward pass (`features/forward.py`)."""

    def __init__(self, model: PublishedModel, *, embeddings: bool = False) -> None:
        self.subject, self.advice = model.subject, model.advice
        self.row_shape = model.image_input.shape
        self._model, self._embeddings = model, embeddings

    def trace(self) -> Any:
        """The network as a traced function without variables, from fitted images to `of_fitted`."""
        images = tf.TensorSpec([None, *self.row_shape], tf.float32)
        return with_constants(traced(lambda rows: self._model.of_fitted(rows, embeddings=self._embeddings), images))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """What the signature itself answers."""
        return [output.numpy() for output in self._model.of_fitted(tf.constant(rows), embeddings=self._embeddings)]


@dataclass
class Asked:
    """Images in stored order. `answers`: for each model its probabilities, float32 [batch, classes] for each batch."""

    answers: list[list[np.ndarray]]
    keys: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    first_images: list[bytes] = field(default_factory=list)


def ask(models: Sequence[Answers], store: Store, shards: Sequence[Shard], *, first_images: int = 0) -> Asked:
    """Predict all images of `shards` with each model. One shard is in memory; `first_images`: number to return."""
    asked = Asked(answers=[[] for _ in models])
    with progress("compare", total=sum(shard.rows for shard in shards)) as advance:
        for shard in shards:
            table = read_shard(store, shard, columns=["key", "image", "label", "sha256"])
            asked.keys += table["key"].to_pylist()
            asked.digests += table["sha256"].to_pylist()
            asked.labels += table["label"].to_pylist()
            for images in _batches(table):
                for model, answers in zip(models, asked.answers, strict=True):
                    answers.append(np.asarray(model(images)["probabilities"], np.float32))
                asked.first_images += images[: first_images - len(asked.first_images)]
                advance(len(images))
    return asked


def _batches(table: Any) -> Iterator[list[bytes]]:
    images = BinaryColumn(table["image"])
    for start in range(0, table.num_rows, BATCH_SIZE):
        yield [images[row] for row in range(start, min(start + BATCH_SIZE, table.num_rows))]


def answers_of_serving(
    config: Config, store: Store, dataset: Dataset, split: str, *, but: str, gate_asks: bool = False
) -> ServingAnswers | None:
    """The version that serves, with its predictions for a split of a dataset version.

    Returns None if no version serves or the serving version is from run `but`. The predictions come from the version's
    report if that has the split; otherwise the model runs here, unless a gate runs it later (`gate_asks`). Raises
    CorruptObjectError for a damaged promotion or version, StorageError.
    """
    serving = read_serving(store, config.name)
    if serving.version is None:
        return None
    version = load_version(store, config.name, serving.version)
    trained = version.provenance
    if trained.run == but:
        return None
    has_them = (trained.dataset, trained.metrics.split) == (dataset.reference, split)
    answers: SameImages | str | None = _of_report(config, store, version) if has_them else None
    if answers is None:
        answers = "the gate asks both" if gate_asks else _asked(config, store, dataset, split, version)
    metrics = trained.metrics
    return ServingAnswers(version.number, trained.dataset, metrics.split, metrics.accuracy, answers)


def _of_report(config: Config, store: Store, version: ModelVersion) -> SameImages | None:
    """The predictions in the version's report; None if they cannot be read any more."""
    try:
        run = load_run(store, version.provenance.run, config)
        _, predictions = load_report(run, version.provenance.report)
    except (CorruptObjectError, ObjectNotFoundError, DatasetError, TrainingError) as error:
        logger.warning("Version %d, which serves, is asked anew: %s", version.number, error)
        return None
    return SameImages(predictions, np.ones(len(predictions.keys), bool))


def _asked(config: Config, store: Store, dataset: Dataset, split: str, version: ModelVersion) -> SameImages | str:
    if split == TRAIN:
        return "these are no held-out images"
    try:
        known = classes_in(store, dataset, version, config.dataset.rename_classes)
        if not set(known) & set(dataset.classes):
            return f"version {version.number} knows none of the classes of {dataset.reference}"
        shards = dataset.shards_of(split)
        tables = read_images(store, dataset, ["sha256"], shards)
        digests = [digest.hex() for table in tables for digest in table["sha256"].to_pylist()]
        comparable = never_trained_on(store, version, dataset, split, digests)
        if not comparable.any():
            return f"version {version.number} may have been trained on all of them"
        with tempfile.TemporaryDirectory() as folder:
            model = load_answers(store, version, Path(folder))
        asked = ask([model], store, shards)
        names, probabilities = in_classes(np.concatenate(asked.answers[0]), known, dataset.classes)
        predictions = Predictions(asked.keys, np.array(asked.labels, np.int32), probabilities, names)
    except Exception as error:  # noqa: BLE001 - whatever a model of another release fails with, the run is evaluated
        logger.warning("Version %d, which serves, cannot be asked: %s", version.number, error)
        return f"version {version.number} cannot be asked ({type(error).__name__})"
    return SameImages(predictions, comparable, tuple(name for name in dataset.classes if name not in known))
