"""A version on a disk, where TensorFlow Serving reads it; without TensorFlow: any folder of files will do."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.published import publish_some
from transfer.errors import CorruptObjectError, RegistryError
from transfer.registry.fetch import fetch_version, higher_number


def test_a_fetched_version_is_whole_in_the_folder_of_its_number(store, tmp_path):
    _, second = publish_some(store, 2)
    folder = fetch_version(store, second, tmp_path / "served", promotion=second.number)
    assert folder == tmp_path / "served/2"
    assert (folder / "saved_model.pb").read_bytes() == b"graph 1"
    assert (folder / "variables/variables.index").read_bytes() == b"index 1"
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["2"]
    assert fetch_version(store, second, tmp_path / "served", promotion=second.number) == folder


def test_a_version_that_is_named_gets_no_number_that_a_server_would_take(store, tmp_path):
    _, second = publish_some(store, 2)
    assert fetch_version(store, second, tmp_path / "served") == tmp_path / "served/version-2"


def test_a_higher_number_beside_it_which_would_be_served_is_told(store, tmp_path):
    first, second = publish_some(store, 2)
    for version in (second, first):
        fetch_version(store, version, tmp_path / "served", promotion=version.number)
    assert higher_number(tmp_path / "served/1") == 2
    assert higher_number(tmp_path / "served/2") is None


def test_two_that_fetch_at_once_both_find_it(store, tmp_path):
    (version,) = publish_some(store, 1)
    with ThreadPoolExecutor(8) as pool:
        folders = set(
            pool.map(lambda _: fetch_version(store, version, tmp_path / "served", promotion=version.number), range(8))
        )
    assert folders == {tmp_path / "served/1"}
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["1"]


def test_a_wrong_byte_in_storage_leaves_no_folder_behind(store, tmp_path):
    (version,) = publish_some(store, 1)
    damaged = version.model_copy(update={"files": (version.files[0].model_copy(update={"sha256": "0" * 64}),)})
    with pytest.raises(CorruptObjectError):
        fetch_version(store, damaged, tmp_path / "served", promotion=damaged.number)
    assert list((tmp_path / "served").iterdir()) == []


def test_a_folder_with_other_content_is_not_taken_for_the_version(store, tmp_path):
    (version,) = publish_some(store, 1)
    folder = fetch_version(store, version, tmp_path / "served", promotion=version.number)
    (folder / "saved_model.pb").write_bytes(b"somebody else's")
    with pytest.raises(RegistryError, match=r"is not version 1 of model `flowers`: saved_model.pb is another file"):
        fetch_version(store, version, tmp_path / "served", promotion=version.number)
    assert (folder / "saved_model.pb").read_bytes() == b"somebody else's"
