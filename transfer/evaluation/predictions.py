"""Predictions of a model for images of one split, with the true labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer.errors import CorruptObjectError, DatasetError

# Softmax in half precision deviates by up to a few thousandths; logits passed by mistake deviate far more.
_SUM_TOLERANCE = 1e-2
_ROUNDS_COARSELY = b"transfer.rounds_coarsely"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a model in the order of the split's rows. Raises DatasetError if shapes or values are not valid.

    `keys`: n names of images. `labels`: int32 [n], true class indices. `probabilities`: float32 [n, classes], each row
    sums to 1. `classes`: names of the classes, by index. `rounds_coarsely`: whether some of it was computed in half
    precision, or in TF32 on a GPU; False in what earlier releases stored.
    """

    keys: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    classes: list[str]
    rounds_coarsely: bool = False

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_labels()
        self._check_probabilities()

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, int64 [n]; in a tie the lower index."""
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted

    def to_parquet(self) -> bytes:
        """Encode as Parquet, without the names of the classes."""
        buffer = io.BytesIO()
        table = pa.table(
            {
                "key": pa.array(self.keys, pa.string()),
                "label": self.labels,
                "probabilities": pa.array(list(self.probabilities), pa.list_(pa.float32())),
            }
        )
        table = table.replace_schema_metadata({_ROUNDS_COARSELY: str(self.rounds_coarsely)})
        pq.write_table(table, buffer, write_page_checksum=True)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, classes: list[str], *, name: str) -> Predictions:
        """Read what `to_parquet` wrote into the object `name`. Raises CorruptObjectError if it is damaged."""
        try:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            keys, labels = table["key"].to_pylist(), table["label"].to_numpy()
            coarsely = (table.schema.metadata or {}).get(_ROUNDS_COARSELY) == b"True"
            return cls(keys, labels, np.stack(table["probabilities"].to_numpy()), classes, coarsely)
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            raise CorruptObjectError(
                f"{name} does not read as predictions: {error}.",
                advice="If its report was not finished, remove this object and repeat the command. Otherwise evaluate "
                "the run again.",
            ) from error

    def slice(self, start: int, stop: int) -> Predictions:
        """Those of some consecutive rows."""
        rows = slice(start, stop)
        return replace(self, keys=self.keys[rows], labels=self.labels[rows], probabilities=self.probabilities[rows])

    def _check_shapes(self) -> None:
        for name, found, dtype, shape in (
            ("labels", self.labels, np.int32, (len(self.keys),)),
            ("probabilities", self.probabilities, np.float32, (len(self.keys), len(self.classes))),
        ):
            if found.dtype != dtype or found.shape != shape:
                raise DatasetError(
                    f"Predictions have {name} of {found.dtype} {list(found.shape)}, expected {np.dtype(dtype)} "
                    f"{list(shape)} for {len(self.keys)} keys and {len(self.classes)} classes.",
                    advice="Predict with a model that was trained on this dataset version.",
                )

    def _check_labels(self) -> None:
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if outside.size:
            row = outside[0]
            raise DatasetError(
                f"Image `{self.keys[row]}` has label {self.labels[row]}, expected 0 to {len(self.classes) - 1}.",
                advice="Use the classes of the dataset version that the labels come from.",
            )

    def _check_probabilities(self) -> None:
        # NaN fails every comparison, so the condition tests for valid values instead of invalid ones.
        within = np.all((self.probabilities >= 0) & (self.probabilities <= 1 + _SUM_TOLERANCE), axis=1)
        sums = self.probabilities.sum(axis=1, dtype=np.float64)
        wrong = np.flatnonzero(~(within & (np.abs(sums - 1) <= _SUM_TOLERANCE)))
        if wrong.size:
            row = wrong[0]
            raise DatasetError(
                f"Image `{self.keys[row]}` has class probabilities that are not from 0 to 1 with a sum of 1: "
                f"smallest {self.probabilities[row].min():g}, sum {sums[row]:g}.",
                advice="Pass the output of softmax or sigmoid, not logits; a NaN means that the weights are broken.",
            )


def in_classes(
    probabilities: np.ndarray, outputs: Sequence[str], classes: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Convert a model's probabilities float32 [n, outputs] to the classes of a dataset: names and float32 [n, names].

    `outputs`: classes of the model, named as in the dataset. Classes that the model does not know have probability 0.
    Classes that only the model knows are appended, so that a prediction of such a class counts as wrong.
    """
    names = list(dict.fromkeys([*classes, *outputs]))
    place = {name: index for index, name in enumerate(names)}
    found = np.zeros((len(probabilities), len(names)), np.float32)
    # Probabilities are added, because two classes of an older model may have been merged since.
    for output, name in enumerate(outputs):
        found[:, place[name]] += probabilities[:, output]
    return names, found
