"""What is found to be missing before anything is spent, in a bucket too."""

import pytest

from tests.digits import digits_config
from transfer.config import DatasetConfig, parse_config
from transfer.ensure import writable_storage
from transfer.errors import BackboneError, ConfigError, DatasetError, StorageError
from transfer.preflight import check_source, check_source_and_files, check_splits
from transfer.storage import open_store


@pytest.fixture
def check(tmp_path, s3_storage):
    store = open_store(s3_storage)
    for name in ("photos/cat/1.png", "photos-of-dogs/dog/1.png", "photos.zip", "base.keras"):
        store.put(name, b"x")

    def check(source, **base):
        config = digits_config(tmp_path, s3_storage.model_dump())
        changed = {"source": source.replace("BUCKET", s3_storage.uri)}
        base = {key: value.replace("BUCKET", s3_storage.uri) for key, value in base.items()}
        check_source_and_files(
            config.model_copy(
                update={
                    "dataset": config.dataset.model_copy(update=changed),
                    "base": config.base.model_copy(update=base),
                }
            )
        )

    return check


def test_sources_and_files_in_a_bucket_are_found(check):
    check("BUCKET/photos")
    check("BUCKET/photos/", model="BUCKET/base.keras")
    check("BUCKET/photos.zip")


@pytest.mark.parametrize(
    ("source", "base", "key"),
    [
        ("BUCKET/photo", {}, r"dataset\.source"),
        ("BUCKET/photoz", {}, r"dataset\.source"),
        ("BUCKET/photo.zip", {}, r"dataset\.source"),
        ("BUCKET/photos", {"model": "BUCKET/bas.keras"}, r"base\.model"),
    ],
)
def test_what_is_not_in_the_bucket_is_named_by_its_key(check, source, base, key):
    with pytest.raises(
        BackboneError if base else DatasetError, match=rf"{key} is `s3://.*`, and there is nothing there"
    ):
        check(source, **base)


def test_a_bucket_that_is_not_there_is_named_by_its_key(check, s3_storage, tmp_path):
    with pytest.raises(StorageError, match=r"dataset\.source is `s3://no-such-bucket/photos`") as refused:
        check("s3://no-such-bucket/photos")
    assert "Correct dataset.source" in refused.value.advice
    storage = s3_storage.model_copy(update={"uri": "s3://no-such-bucket/place"})
    with pytest.raises(StorageError, match=r"^storage is `s3://no-such-bucket/place`: .*NoSuchBucket"):
        writable_storage(digits_config(tmp_path, storage.model_dump()))


def test_a_given_split_is_one_to_validate_and_evaluate_on_whatever_its_share():
    def check(**dataset):
        document = {"name": "pets", "storage": "s3://bucket", "base": {"model": "VGG16"}}
        dataset = {"source": "photos", "validation": 0, "test": 0, **dataset}
        check_splits(parse_config({**document, "dataset": dataset}), sweeps="validation" in dataset.get("splits", {}))

    check(splits={"train": "train", "validation": "val"})
    check(splits={"train": "train", "test": "test"})
    check(split_column="split")
    with pytest.raises(ConfigError, match="nothing to evaluate the run on"):
        check(splits={"train": "train"})


def test_an_archive_on_this_machine_is_opened(tmp_path, folder_storage):
    (tmp_path / "photos.zip").write_text("a page that says that the file has moved")
    dataset = DatasetConfig(source=str(tmp_path / "photos.zip"))
    with pytest.raises(DatasetError, match=r"The archive .*photos.zip is refused"):
        check_source(dataset, folder_storage)
