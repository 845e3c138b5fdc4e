"""What is said of a source before it is ingested is what ingest does with it."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.images import encode, picture
from tests.sourcing import config_of, rehearsal_of, write_classes, write_file
from transfer.dataset import rehearsal
from transfer.dataset.candidates import list_candidates
from transfer.dataset.ingest import ingest
from transfer.dataset.rehearsal import listed_candidates
from transfer.dataset.sources import open_source
from transfer.dataset.splits import SPLITS
from transfer.errors import DatasetError
from transfer.storage import open_store


def rehearsed(source, storage, **options):
    config, store = config_of(source, storage, **options), open_store(storage)
    with listed_candidates(config, store) as candidates:
        return rehearsal_of(candidates)


def refused_in_both(source, storage, **options):
    """The message that a rehearsal and an ingest end with: the same, but for the ledger that only ingest writes."""
    with pytest.raises(DatasetError) as of_rehearsal:
        rehearsed(source, storage, **options)
    with pytest.raises(DatasetError) as of_ingest:
        ingest(config_of(source, storage, **options), open_store(storage))
    assert of_ingest.value.message.partition(" All of them are in rejects/")[0] == of_rehearsal.value.message
    assert of_ingest.value.advice == of_rehearsal.value.advice
    return of_rehearsal.value.message


def add_texts(source, label, count):
    for number in range(count):
        write_file(source / label / f"note{number}.txt", b"no image")


def test_it_counts_what_ingest_stores_and_writes_nothing(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=30, dog=20)
    add_texts(source, "cat", 3)
    shutil.copy(source / "dog/00030.png", source / "dog/copy.png")
    found = rehearsed(source, folder_storage, max_reject_share=0.1, test=0.2)
    assert list(open_store(folder_storage).list()) == []
    dataset = ingest(config_of(source, folder_storage, max_reject_share=0.1, test=0.2), open_store(folder_storage))
    assert found.unknown == []
    assert found.classes == {"cat": 30, "dog": 20}
    assert found.splits == {split: dataset.rows(split) for split in SPLITS}
    assert found.rejected == dataset.reject_counts == {"duplicate": 1, "not_an_image": 3}


@pytest.mark.parametrize(
    ("counts", "options", "said"),
    [
        ({"cat": 9, "dog": 3}, {"min_images_per_class": 4}, "`dog` has 3"),
        ({"cat": 9, "dog": 9}, {"test": 0.001}, "The test split is empty"),
        ({"cat": 9}, {}, "only one class"),
        ({"train": 9, "val": 9}, {}, "splits, and no classes"),
        ({"cat": 9, "Cat": 9}, {}, "differ only by case"),
    ],
)
def test_it_refuses_what_ingest_refuses(tmp_path, folder_storage, counts, options, said):
    assert said in refused_in_both(write_classes(tmp_path / "images", **counts), folder_storage, **options)


def test_it_refuses_too_many_files_that_are_no_images(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=9, dog=9)
    add_texts(source, "dog", 2)
    said = refused_in_both(source, folder_storage, max_reject_share=0.05)
    limit = "dataset.max_reject_share is 5.0 %"
    assert f"2 of 20 images were refused (10.0 %), and {limit}: dog/note0.txt" in said


def test_files_that_an_earlier_ingest_has_seen_are_not_read_again(tmp_path, folder_storage, monkeypatch):
    source = write_classes(tmp_path / "images", cat=20, dog=20)
    ingest(config_of(source, folder_storage), open_store(folder_storage))
    monkeypatch.setattr(rehearsal, "MOST_READ", 1)
    assert rehearsed(source, folder_storage).unknown == []


@pytest.mark.parametrize("limit", ["MOST_READ", "MOST_READ_SIZE_BYTES"])
def test_a_large_source_is_read_in_part_and_what_is_not_known_is_named(tmp_path, folder_storage, monkeypatch, limit):
    source = write_classes(tmp_path / "images", cat=30, dog=30)
    size_bytes = sum(path.stat().st_size for path in source.rglob("*.png"))
    monkeypatch.setattr(rehearsal, limit, {"MOST_READ": 20, "MOST_READ_SIZE_BYTES": size_bytes // 3 + 1}[limit])
    found = rehearsed(source, folder_storage)
    assert (found.files, found.known, found.classes) == (60, 20, {"cat": 30, "dog": 30})
    assert found.splits == {"train": 42, "validation": 18, "test": 0}
    assert found.unknown == [
        "20 of 60 files were read, one of each 3. Which of the others are images and which are copies is not known."
    ]


def test_of_a_large_source_only_what_is_certain_is_refused(tmp_path, folder_storage, monkeypatch):
    monkeypatch.setattr(rehearsal, "MOST_READ", 20)
    source = write_classes(tmp_path / "images", cat=30, dog=27)
    add_texts(source, "dog", 3)
    # One of the three is read, of 20 files.
    *_, likely = rehearsed(source, folder_storage, max_reject_share=0.04).unknown
    assert "5.0 % of the files that were read are refused, and dataset.max_reject_share is 4.0 %" in likely
    assert "ingest will probably refuse the source. dog/note" in likely
    with pytest.raises(DatasetError, match="1 of 60 images were refused"):
        rehearsed(source, folder_storage, max_reject_share=0.0)
    with pytest.raises(DatasetError, match="`dog` has 29"):
        rehearsed(source, folder_storage, max_reject_share=0.1, min_images_per_class=30)
    *_, likely = rehearsed(source, folder_storage, max_reject_share=0.1, test=0.01).unknown
    assert likely == ("0.6 of 59 images are expected in the test split: it may be empty, which ingest refuses.")


def test_a_listing_that_ended_early_refuses_no_class(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=30, dog=30)
    config, store = config_of(source, folder_storage, min_images_per_class=20), open_store(folder_storage)
    with open_source(config.dataset, config.storage) as opened:
        for most, classes in ((10, {"cat": 10}), (35, {"cat": 30, "dog": 5})):
            found = rehearsal_of(list_candidates(config, store, opened, most=most))
            assert found.classes == classes
            assert "What comes behind them, classes too, is not known." in found.unknown[0]
        assert list_candidates(config, store, opened, most=60).listing.is_whole


def test_an_archive_is_known_when_it_is_unpacked(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=3, dog=3)
    packed = shutil.make_archive(os.fspath(tmp_path / "packed"), "zip", source)
    with listed_candidates(config_of(packed, folder_storage), open_store(folder_storage)) as candidates:
        assert candidates is None


def test_images_in_a_parquet_table_are_read_as_ingest_reads_them(tmp_path, folder_storage):
    images = [encode(picture(16, 16, seed=seed), "PNG") for seed in range(40)]
    table = pa.table({"image": images, "label": ["cat", "dog"] * 20})
    pq.write_table(table, tmp_path / "t.parquet")
    found = rehearsed(tmp_path / "t.parquet", folder_storage)
    assert (found.images, found.rejected) == (40, {})
