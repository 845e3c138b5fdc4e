"""The document of a model's version. The registry writes it, and warm starts read it, too."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from transfer.catalog import layout
from transfer.catalog.layout import Number, check_name
from transfer.catalog.run import DatasetVersion
from transfer.errors import RegistryError


class ModelFile(BaseModel):
    """One file of a SavedModel."""

    model_config = ConfigDict(frozen=True)

    name: str
    size_bytes: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, name: str) -> str:
        return check_name(name)


class BaseDigest(BaseModel):
    """The network that a model was trained on: `base.model`, and the SHA-256 of what it was pretrained to be."""

    model_config = ConfigDict(frozen=True)

    model: str
    sha256: str
    weights_from: str | None = Field(default=None, exclude_if=lambda origin: origin is None)
    """Source and licence of its weights, in words; a version of an earlier release names none."""


class TrainedWeights(BaseModel):
    """The number of a run's checkpoint, and the SHA-256 of its weights."""

    model_config = ConfigDict(frozen=True)

    checkpoint: int
    sha256: str


class ReportedMetrics(BaseModel):
    """What a version's report says, on which split."""

    model_config = ConfigDict(frozen=True)

    loss: float
    accuracy: float
    split: str


class Parity(BaseModel):
    """How far the exported model's probabilities were from the evaluated ones, on so many images."""

    model_config = ConfigDict(frozen=True)

    images: int
    largest_difference: float
    by_loader: dict[str, float]


class Provenance(BaseModel):
    """Where a model version comes from."""

    model_config = ConfigDict(frozen=True)

    run: str
    """Id of the run that was published."""
    dataset: str
    """Reference of the dataset version that it was trained on: `flowers/00000003`."""
    base: BaseDigest
    weights: TrainedWeights
    report: Number
    """Of the run's reports, the one that the version was published with."""
    metrics: ReportedMetrics
    config: dict[str, Any]
    """The run's configuration, as the release that trained it had it, without the section `storage`."""
    parity: Parity | None = None
    """None before the proof: inside of the exported model."""

    @property
    def dataset_version(self) -> DatasetVersion:
        """Name and number of the dataset version."""
        name, _, number = self.dataset.rpartition("/")
        return DatasetVersion(name=name, number=int(number))


class Pretrained(BaseModel):
    """Where a version comes from that was not trained here: a pretrained classifier, published as it is."""

    model_config = ConfigDict(frozen=True)

    base: BaseDigest
    classes_from: str
    """Source of the names of its classes, in words."""
    config: dict[str, Any]
    """The configuration that it was published with, without the section `storage`."""
    parity: Parity | None = None
    """None before the proof: inside of the exported model."""


class ModelVersion(BaseModel):
    """A published version: whole, verified, never changed."""

    model_config = ConfigDict(frozen=True)

    model: str
    number: Number
    published_at: str
    files: tuple[ModelFile, ...]
    classes: tuple[str, ...]
    untrained_classes: tuple[str, ...] = ()
    """Those without training images, which it never answers; a version of an earlier release names none."""
    provenance: Annotated[Provenance | Pretrained, Field(union_mode="left_to_right")]
    published_after: int | None = None
    """Number of the promotion in force when it was published; 0 when there was none, None in earlier releases."""

    def decided_on_since(self, promotion: int) -> bool:
        """Whether somebody decided what serves after this was published, where `promotion` is the latest one's number.

        A job must not promote it then. True also for what earlier releases published, unless nothing serves.
        """
        return promotion > 0 and self.published_after != promotion

    @property
    def trained(self) -> Provenance | None:
        """Its run and what follows from that; None if it is a pretrained classifier as it is."""
        return self.provenance if isinstance(self.provenance, Provenance) else None

    @property
    def of_run(self) -> Provenance:
        """The same. Raises RegistryError if it is a pretrained classifier as it is."""
        if self.trained is None:
            raise RegistryError(
                f"Version {self.number} of `{self.model}` is a pretrained classifier, published as it is: it has no "
                "run and no report.",
                advice="Name a version that was trained; `transfer registry list` shows the run of each.",
            )
        return self.trained

    @property
    def folder(self) -> str:
        """Folder of the SavedModel in storage."""
        return layout.version_folder(self.model, self.number)

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)
