"""What ingest refuses as a whole, and how it says so."""

import re
import shutil

import pytest

from tests.sourcing import config_of, image, read_ledger, write_classes
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import dataset_log
from transfer.errors import DatasetError
from transfer.storage import open_store


def refusal(source, storage, **options):
    store = open_store(storage)
    before = dataset_log(store, "pets").numbers()
    with pytest.raises(DatasetError) as caught:
        ingest(config_of(source, storage, **options), store)
    assert dataset_log(store, "pets").numbers() == before
    assert caught.value.advice
    return caught.value.message


def test_an_empty_source_has_no_classes(tmp_path, folder_storage):
    (tmp_path / "empty").mkdir()
    assert f"no images with a class in {tmp_path}/empty." in refusal(tmp_path / "empty", folder_storage)


def test_images_without_class_folders_are_listed_in_the_ledger(tmp_path, folder_storage):
    source = tmp_path / "flat"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(image(number))
    message = refusal(source, folder_storage)
    assert "the 3 other things there are listed in rejects/" in message
    ledger = read_ledger(open_store(folder_storage), re.search(r"rejects/\w+\.parquet", message)[0])
    assert ledger["reason"].to_pylist() == ["no_class_folder"] * 3


def test_one_class_alone_is_refused(tmp_path, folder_storage):
    assert "only one class in" in refusal(write_classes(tmp_path / "images", cat=5), folder_storage)


def test_splits_are_no_classes(tmp_path, folder_storage):
    message = refusal(write_classes(tmp_path / "images", train=3, Val=3), folder_storage)
    assert "`Val`, `train`: splits, and no classes" in message


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "Cat"), ("caf\u00e9", "CAFE\u0301"), ("Straße", "strasse"), ("a  b", "a b "), ("ﬁsh", "fish")],
)
def test_class_names_that_people_take_for_the_same_are_refused(tmp_path, folder_storage, one, other):
    source = write_classes(tmp_path / "images", **{one: 3, other: 3, "dog": 3})
    assert "differ only by case, space or Unicode form" in refusal(source, folder_storage)


def test_class_names_of_earlier_versions_count_too(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=20, dog=20)
    ingest(config_of(source, folder_storage), open_store(folder_storage))
    (source / "cat").rename(source / "CAT")
    message = refusal(source, folder_storage)
    assert "`cat` and `CAT`" in message


def test_a_class_with_too_few_accepted_images_is_refused(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=20, dog=4, ant=0)
    for number in range(10):
        shutil.copy(source / "dog" / "00020.png", source / "dog" / f"copy{number}.png")
    message = refusal(source, folder_storage, min_images_per_class=5)
    assert "2 of 3 classes have fewer than 5 accepted images" in message
    assert "`ant` has 0, `dog` has 4" in message


def test_one_class_that_is_left_of_an_earlier_version_is_refused(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", ant=20, cat=20)
    ingest(config_of(source, folder_storage), open_store(folder_storage))
    for path in (source / "ant").iterdir():
        path.unlink()
    assert "Of the 2 classes only `cat` has training images" in refusal(source, folder_storage)
    shutil.rmtree(source / "ant")
    assert "only one class in" in refusal(source, folder_storage)


def test_a_class_of_an_earlier_version_with_too_few_images_is_refused(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", ant=20, cat=20, dog=20)
    ingest(config_of(source, folder_storage), open_store(folder_storage))
    for path in sorted((source / "ant").iterdir())[1:]:
        path.unlink()
    assert "`ant` has 1" in refusal(source, folder_storage)


def test_a_split_that_comes_out_empty_is_refused(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=3, dog=3)
    assert "The test split is empty: its share is 0.001, and none of the 6 images" in refusal(
        source, folder_storage, test=0.001
    )
    assert "The train split is empty" in refusal(source, folder_storage, validation=0.999, group_pattern="[^/]+$")


def test_a_split_without_a_share_may_be_empty(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=3, dog=3)
    dataset = ingest(config_of(source, folder_storage, validation=0.0), open_store(folder_storage))
    assert [dataset.rows(split) for split in ("train", "validation", "test")] == [6, 0, 0]


def test_too_many_rejects_name_the_first_five_and_the_ledger(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=20, dog=20)
    for number in range(7):
        (source / "dog" / f"broken{number}.jpg").write_bytes(b"broken")
    message = refusal(source, folder_storage, max_reject_share=0.1)
    assert "7 of 47 images were refused (14.9 %), and dataset.max_reject_share is 10.0 %" in message
    assert [f"dog/broken{number}.jpg (not_an_image" in message for number in range(7)] == [True] * 5 + [False] * 2
    assert "and 2 more" in message
    ledger = read_ledger(open_store(folder_storage), re.search(r"rejects/\w+\.parquet", message)[0])
    assert ledger["key"].to_pylist() == [f"dog/broken{number}.jpg" for number in range(7)]


def test_one_odd_file_in_a_small_folder_is_borne_unless_none_is(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    (source / "dog" / "broken.jpg").write_bytes(b"broken")
    assert "1 of 21 images were refused" in refusal(source, folder_storage, max_reject_share=0.0)
    dataset = ingest(config_of(source, folder_storage), open_store(folder_storage))
    assert dataset.reject_counts == {"not_an_image": 1}
    (source / "cat" / "broken.jpg").write_bytes(b"broken, too")
    assert "2 of 22 images were refused (9.1 %), and dataset.max_reject_share is 1.0 %" in refusal(
        source, folder_storage
    )


def test_ignored_files_and_copies_are_no_rejects_that_fail_an_ingest(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    for number in range(20):
        (source / "cat" / f".{number}").touch()
        shutil.copy(source / "cat" / "00000.png", source / "cat" / f"copy{number}.png")
    dataset = ingest(config_of(source, folder_storage, max_reject_share=0.0), open_store(folder_storage))
    assert dataset.reject_counts == {"duplicate": 20, "ignored": 20}
