"""What a trained model answers: with its head on cached features, or with all of it on images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

from transfer.dataset.batches import decoded_batches
from transfer.dataset.manifest import Dataset, Shard
from transfer.features.extract import Extractor
from transfer.features.forward import Forward, forward_of
from transfer.features.frozen import FrozenPart, frozen_part_of
from transfer.features.store import FeatureStore
from transfer.training.inference import InferenceWork, rounds_coarsely, trace_head, trace_inference
from transfer.training.run import Run
from transfer.training.samples import CachedSplit
from transfer.training.shared_models import restore_model

HEAD_ROWS = 1024
"""Batch size of the head on cached features."""


class RunAnswers:
    """The model of a finished run, to be asked for its predictions.

    `exactly`: the exported graph itself answers. Otherwise faster ways are allowed, which differ by rounding: the head
    on cached features, if no phase trained the base, and OpenVINO. Raises TrainingError if the run is not finished, and
    what `restore_model` raises.
    """

    def __init__(self, run: Run, dataset: Dataset, *, exactly: bool) -> None:
        self.model, _ = restore_model(run, dataset)
        self._run, self._exactly = run, exactly
        # Before anybody else asks for a model, whose weights would be in the same variables.
        self._head = trace_head(self.model)
        self._extractor = Extractor(run.store, engine=run.config.features.engine)

    @cached_property
    def frozen_part(self) -> FrozenPart | None:
        """The frozen part whose cached features the head takes; None if images go through the whole network."""
        config = self._run.config
        # Cached features were computed with merged BatchNorms, which a plain graph lacks.
        if self._exactly or not config.trains_head_only or config.features.cache == "never":
            return None
        if config.publish.graph == "plain":
            return None
        frozen_part = frozen_part_of(self.model.backbone, 0, map_dtype=config.features.map_dtype)
        # A map is larger than the image, and cached in half precision unless told otherwise.
        return frozen_part if frozen_part is not None and len(frozen_part.shape) == 1 else None

    def has_features(self, shards: Sequence[Shard]) -> bool:
        """Whether the head can take features, and those of all `shards` are cached."""
        return self.frozen_part is not None and not self._extractor.plan(shards, [self.frozen_part])

    def by_features(self, shards: Sequence[Shard]) -> np.ndarray | None:
        """Probabilities float32 [images of the shards, classes] from cached features, computed now if they are missing.

        None if images have to go through the whole network. Raises what extraction raises.
        """
        if self.frozen_part is None:
            return None
        self._extractor.extract(shards, [self.frozen_part])
        rows = FeatureStore(self._run.store, self.frozen_part).open_all(shards)
        # An object may be damaged, or have been removed just now.
        found = [each for each in rows if each is not None]
        if len(found) < len(shards):
            return None
        features = CachedSplit(list(shards), found)
        return np.concatenate([answers for answers, _ in self.by_head(features, range(len(features)))])

    def by_head(self, features: CachedSplit, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield probabilities float32 [n, classes] and features float32 [n, features] of `rows`, a few at a time."""
        for start in range(0, len(rows), HEAD_ROWS):
            some = np.array(rows[start : start + HEAD_ROWS])
            values = np.empty((len(some), *features.shape), features.dtype)
            features.take(some, values)
            values = np.asarray(values, np.float32)
            yield self._head(tf.constant(values)).numpy(), values

    def by_network(self, encoded: Iterable[bytes]) -> np.ndarray:
        """Probabilities float32 [n, classes] of n encoded images. Raises what a forward pass raises."""
        work, forward = self._network
        batch_size = forward.batch_size if forward else self._run.config.training.batch_size
        images = decoded_batches(encoded, image_input=self.model.backbone.image_input, batch_size=batch_size)
        answers = forward.map(images) if forward else map(work.plain, images)
        return np.concatenate([probabilities for (probabilities,) in answers])

    @property
    def rounds_coarsely(self) -> bool:
        """Whether the model computes in half precision somewhere, or in this process on a GPU in TF32."""
        return rounds_coarsely(self.model)

    @cached_property
    def _network(self) -> tuple[InferenceWork, Forward | None]:
        """The traced model, and the fast way to run it, which an exact answer does not take."""
        work = InferenceWork(self.model, trace_inference(self.model, graph=self._run.config.publish.graph))
        return work, None if self._exactly else forward_of(work, engine=self._run.config.features.engine)
