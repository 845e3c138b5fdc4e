"""What a run is published as, without TensorFlow."""

from pathlib import Path

import pytest

from tests.published import MODEL, numbers, provenance_of, publish_some
from transfer.errors import PublishConflictError
from transfer.registry.retention import remove_old_versions
from transfer.registry.versions import publish_once, published_version, upload_version, versions_log
from transfer.storage import Log


def uploaded(store, folder, content=b"graph"):
    Path(folder, "saved_model.pb").write_bytes(content)
    return upload_version(store, MODEL, folder, classes=["a", "b"], provenance=provenance_of())


def test_a_run_is_published_once(store, tmp_path):
    assert published_version(store, MODEL, "run") is None
    first = publish_once(store, uploaded(store, tmp_path), run="run")
    assert published_version(store, MODEL, "run") == first
    with pytest.raises(PublishConflictError, match="as version 1 of model") as caught:
        publish_once(store, uploaded(store, tmp_path, b"rounded otherwise"), run="run")
    assert caught.value.exit_code == 14
    assert numbers(store) == [1]


def test_a_version_whose_publisher_died_before_it_existed_exists_once_somebody_asks(store, tmp_path):
    version = uploaded(store, tmp_path)
    Log(store, f"models/{MODEL}/published/run").append(version.model_dump(mode="json"))
    assert versions_log(store, MODEL).numbers() == []
    assert published_version(store, MODEL, "run") == version
    assert numbers(store) == [1]


def test_a_run_whose_version_was_removed_is_published_anew(store, tmp_path):
    publish_once(store, uploaded(store, tmp_path), run="run")
    publish_some(store, 2, promoted=[2])
    remove_old_versions(store, MODEL, keep=1, remove=True)
    assert published_version(store, MODEL, "run") is None
    again = publish_once(store, uploaded(store, tmp_path), run="run")
    assert published_version(store, MODEL, "run") == again
    assert numbers(store) == [3, 4]


def test_a_run_is_published_once_more_where_that_is_asked_for_and_both_versions_stay(store, tmp_path):
    first = publish_once(store, uploaded(store, tmp_path), run="run")
    second = publish_once(store, uploaded(store, tmp_path, b"by other code"), run="run", instead_of=first)
    assert published_version(store, MODEL, "run") == second
    with pytest.raises(PublishConflictError, match="as version 2 of model"):
        publish_once(store, uploaded(store, tmp_path, b"at the same time"), run="run", instead_of=first)
    assert numbers(store) == [1, 2]
