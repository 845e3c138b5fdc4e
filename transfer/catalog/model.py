"""The document of a model's version. The registry writes it, and warm starts read it, too."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from transfer.catalog import layout
from transfer.catalog.layout import Number, check_name


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
    provenance: dict[str, Any]
    published_after: int | None = None
    """Number of the promotion in force when it was published; 0 when there was none, None in earlier releases."""

    def decided_on_since(self, promotion: int) -> bool:
        """Whether somebody decided what serves after this was published, where `promotion` is the latest one's number.

        A job must not promote it then. True also for what earlier releases published, unless nothing serves.
        """
        return promotion > 0 and self.published_after != promotion

    @property
    def folder(self) -> str:
        """Folder of the SavedModel in storage."""
        return layout.version_folder(self.model, self.number)

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)
