"""What the registry has written of a version reads back, and is written again, as it is."""

import pytest

from transfer.catalog.model import ModelVersion
from transfer.catalog.run import DatasetVersion
from transfer.errors import CorruptObjectError
from transfer.storage import as_model

STORED = {
    "model": "flowers",
    "number": 3,
    "published_at": "2026-11-29T02:04:00+00:00",
    "files": [{"name": "saved_model.pb", "size_bytes": 5, "sha256": "ab"}],
    "classes": ["daisy", "rose"],
    "untrained_classes": [],
    "provenance": {
        "run": "flowers-0123456789ab",
        "dataset": "flowers/00000007",
        "base": {"model": "MobileNetV2", "sha256": "bc"},
        "weights": {"checkpoint": 4, "sha256": "cd"},
        "report": 1,
        "metrics": {"loss": 0.25, "accuracy": 0.9, "split": "test"},
        "config": {"name": "flowers", "dataset": {"validation": 0.1, "test": 0.1}},
        "parity": {"images": 64, "largest_difference": 2e-6, "by_loader": {"a session": 2e-6}},
    },
    "published_after": 2,
}


def test_a_stored_version_is_written_again_as_it_is():
    version = as_model(ModelVersion, STORED, uri="storage")
    assert version.model_dump(mode="json") == STORED
    assert version.provenance.dataset_version == DatasetVersion(name="flowers", number=7)


def test_a_version_that_does_not_say_which_run_it_is_of_is_refused():
    provenance = {key: value for key, value in STORED["provenance"].items() if key != "run"}
    with pytest.raises(CorruptObjectError, match=r"provenance\.Provenance\.run"):
        as_model(ModelVersion, {**STORED, "provenance": provenance}, uri="storage")
