"""What `transfer registry verify` finds among versions, those of earlier exports included."""

from pathlib import Path

import pytest

from tests.published import add_version, provenance_of
from tests.unit.registry.test_export_proof import CLASSES, Tampered, convolutions, model_on
from transfer.registry.export import export
from transfer.registry.verify import problems_of_versions
from transfer.storage import open_store


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A good export, and one as it was made before sessions were asked."""
    folder, model = tmp_path_factory.mktemp("models"), model_on(convolutions())
    export(model, folder / "good", provenance={})
    Tampered(model, "Keras's variables").save(folder / "old")
    return [folder / "good", folder / "old"]


@pytest.mark.proof
def test_versions_that_no_session_can_run_and_damaged_ones_are_found(models, folder_storage):
    store = open_store(folder_storage)
    good, _, damaged = (
        add_version(store, "flowers", models[index], classes=CLASSES, provenance=provenance_of()) for index in (0, 1, 0)
    )
    path = Path(folder_storage.uri) / damaged.folder / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:-1])
    problems = {version.number: problem for version, problem in problems_of_versions(store, "flowers")}
    assert problems[1] == ""
    assert "asked by a session, as in TensorFlow Serving: FailedPreconditionError" in problems[2]
    assert "saved_model.pb" in problems[3]
    assert list(problems_of_versions(store, "flowers", 1)) == [(good, "")]
