"""What a worker does in a prediction job: it loads a published version once, then predicts one part after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.dataset.index import ImageIndex
from transfer.dataset.manifest import Dataset, Reject, Shard
from transfer.dataset.refusals import RejectedImage, RejectReason
from transfer.dataset.row_groups import BinaryColumn
from transfer.dataset.shards import read_rows
from transfer.errors import RegistryError
from transfer.registry.prediction_file import Columns, Outputs, failures_in, predictions_table
from transfer.registry.prediction_folder import PredictionFolder
from transfer.registry.prediction_parts import Part
from transfer.registry.versions import download_version
from transfer.runtime.startup import import_tensorflow
from transfer.storage import open_store

if TYPE_CHECKING:
    from transfer.registry.answered_images import Prepared, ReadableImage
    from transfer.registry.published_model import Batch


@dataclass(frozen=True)
class Predicted:
    """What became of a part."""

    failures: int
    from_features: int = 0
    """Number of its images that were predicted from cached features."""
    table: pa.Table | None = None
    """The predictions, unless they were written to a folder."""


class PredictionWork:
    """The function of a part, for `Actors`. It is called from several threads."""

    def __init__(
        self,
        config: Config,
        version: ModelVersion,
        columns: Columns,
        folder: str | None,
        dataset: Dataset | None = None,
    ) -> None:
        """`folder`: the parts are written to this folder of predictions; None: they are returned.

        `dataset`: the version that shards of parts are of.
        """
        import_tensorflow()

        from transfer.registry.head_answers import HeadAnswers
        from transfer.registry.published_model import PublishedModel

        self._config, self._version, self._columns = config, version, columns
        self._folder = PredictionFolder(folder, config.storage) if folder else None
        self._store = open_store(config.storage)
        self._index = ImageIndex(self._store, dataset, ["key"]) if dataset else None
        # It is in memory when it is loaded, and a worker that is ended removes no files.
        with tempfile.TemporaryDirectory() as files:
            self._model = PublishedModel(version, download_version(self._store, version, Path(files) / "model"))
            self._image_input, background = self._model.image_input, self._model.background
        if columns.embeddings and self._model.embedding_size is None:
            raise RegistryError(
                f"{self._model.subject} has no embeddings: an earlier release exported it, or its head takes the whole "
                "feature map.",
                advice="Publish its run again with this release (`transfer publish --again`), or predict without "
                "--embeddings.",
            )
        self._limits = config.dataset.model_copy(update={"background": background})
        self._heads = HeadAnswers(config, self._store, version, self._model, embeddings=columns.embeddings)
        self._is_closed = False

    def close(self) -> None:
        """End the parts that other threads are at: they are not wanted any more."""
        self._is_closed = True

    def __call__(self, part: Part) -> Predicted:
        """Predict a part, and write it if it goes to a folder that does not have it yet."""
        if self._folder and (found := self._folder.written(part.name, rows=part.rows)):
            return Predicted(found.failures)
        answered, has_used_features = self._of_shard(part.shard, part) if part.shard else (self._of_images(part), False)
        size = self._model.embedding_size if self._columns.embeddings else None
        table = predictions_table(answered, self._version, self._columns, embedding_size=size)
        from_features = part.rows if has_used_features else 0
        if self._folder:
            return Predicted(self._folder.write(part.name, table).failures, from_features)
        return Predicted(failures_in(table), from_features, table)

    def _of_images(self, part: Part) -> list[tuple[str, Outputs | Reject]]:
        from transfer.dataset.batches import checked_and_decoded

        largest = self._limits.max_file_size_bytes
        images = ((image.key, partial(image.read, max_size_bytes=largest)) for image in part.images)
        return self._answered(images, partial(checked_and_decoded, image_input=self._image_input, limits=self._limits))

    def _of_shard(self, shard: Shard, part: Part) -> tuple[list[tuple[str, Outputs | Reject]], bool]:
        """The answers, and whether they come from cached features."""
        rows = part.shard_rows
        if part.has_features and self._index and (answers := self._heads.of_shard(shard, rows)) is not None:
            (table,) = self._index.tables([shard])
            keys = table["key"].slice(rows.start, len(rows)).to_pylist()
            return list(zip(keys, answers, strict=True)), True
        table = read_rows(self._store, shard, rows, columns=["key", "image"])
        keys, column = table["key"].to_pylist(), BinaryColumn(table["image"])
        images = ((key, partial(column.__getitem__, row)) for row, key in enumerate(keys))
        return self._answered(images, self._stored), False

    def _stored(self, data: bytes, *, key: str) -> tuple[bytes, np.ndarray] | RejectedImage:
        """An image of a shard, which an ingest has checked, decoded."""
        del key
        import tensorflow as tf

        from transfer.dataset.batches import decoded
        from transfer.dataset.check import op_text

        try:
            return data, decoded(data, image_input=self._image_input)
        except tf.errors.InvalidArgumentError as error:
            return RejectedImage(RejectReason.UNSUPPORTED_FORMAT, op_text(error))

    def _answered(
        self, images: Iterable[ReadableImage], prepare: Callable[..., Prepared]
    ) -> list[tuple[str, Outputs | Reject]]:
        from transfer.registry.answered_images import answered_images

        def answer(batches: Iterator[Batch]) -> Iterator[Iterable[Outputs]]:
            outputs = self._model.outputs(
                batches, engine=self._config.features.engine, embeddings=self._columns.embeddings
            )
            for probabilities, *rest in outputs:
                yield zip(probabilities, rest[0] if rest else [None] * len(probabilities), strict=True)

        answered: list[tuple[str, Outputs | Reject]] = []
        for batch in answered_images(images, prepare=prepare, answer=answer):
            if self._is_closed:
                raise InterruptedError("this part is not wanted any more")
            answered += batch
        return answered
