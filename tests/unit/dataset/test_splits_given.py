"""Splits that a source gives: by folders around the class folders, or by a column of its table."""

import hashlib
import json
import shutil
import struct
import zipfile

import pytest

from tests.sourcing import config_of, image, read_ledger, rehearsal_of, write_classes, write_file
from transfer.dataset.ingest import ingest
from transfer.dataset.rehearsal import listed_candidates
from transfer.dataset.shards import read_shard
from transfer.dataset.sources.folder import BucketFolderSource
from transfer.dataset.splits import SPLITS
from transfer.errors import DatasetError
from transfer.overview import NetworkFacts, for_people, overview
from transfer.storage import open_store
from transfer.storage.s3 import S3Store

BY_FOLDER = {"train": {"cat": 8, "dog": 8}, "val": {"cat": 3, "dog": 2}, "test": {"cat": 2, "dog": 4}}
COUNTS = {"train": {"cat": 8, "dog": 8}, "validation": {"cat": 3, "dog": 2}, "test": {"cat": 2, "dog": 4}}


@pytest.fixture
def source(tmp_path):
    return write_splits(tmp_path / "images", BY_FOLDER)


def write_splits(folder, layout):
    for number, (split, counts) in enumerate(layout.items()):
        write_classes(folder / split, first_seed=100 * number, **counts)
    return folder


def ingested(source, storage, **options):
    return ingest(config_of(source, storage, **options), open_store(storage))


def splits_of(dataset, storage):
    """The split of each key."""
    return {
        key: shard.split
        for shard in dataset.shards
        for key in read_shard(open_store(storage), shard, columns=["key"])["key"].to_pylist()
    }


def refusal(source, storage, **options):
    """What a rehearsal and an ingest refuse a source with: the same."""
    config, store = config_of(source, storage, **options), open_store(storage)
    with pytest.raises(DatasetError) as of_ingest:
        ingest(config, store)
    with pytest.raises(DatasetError) as of_rehearsal:
        rehearsed(source, storage, **options)
    assert of_ingest.value.advice
    assert of_rehearsal.value.message == of_ingest.value.message
    return of_ingest.value.message


def rehearsed(source, storage, **options):
    with listed_candidates(config_of(source, storage, **options), open_store(storage)) as candidates:
        return rehearsal_of(candidates)


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def bitmap(seed):
    """A BMP of 4×4 pixels, which no library had a hand in."""
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 102, 0, 0, 54, 40, 4, 4, 1, 24, 0, 48, 0, 0, 0, 0)
    return header + bytes((37 * seed + 11 * place) % 256 for place in range(48))


def test_without_any_of_these_keys_a_version_is_what_it_always_was(tmp_path, folder_storage):
    for number in range(40):
        write_file(tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number}.bmp", bitmap(number))
    dataset = ingested(tmp_path / "images", folder_storage, test=0.2)
    store, columns = open_store(folder_storage), ["key", "label", "sha256"]
    rows = [
        [shard.split, [[row[name] for name in columns] for row in read_shard(store, shard).to_pylist()]]
        for shard in dataset.shards
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "c7d7e06e215e78b9c99ba25836cb603e4b0549f3939e40449c158f22ba0b5c54"
    assert "splitting" not in dataset.model_dump()


@pytest.mark.parametrize(
    "options",
    [{}, {"splits": {"train": "train", "validation": "val", "test": "test"}}],
    ids=["recognized", "named"],
)
def test_folders_of_splits_around_class_folders_are_splits(source, folder_storage, options):
    dataset = ingested(source, folder_storage, **options)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.counts == COUNTS
    assert dataset.splitting.title == "train, validation, test as given by folders"
    assert "train/cat/00000.png" in splits_of(dataset, folder_storage)


def test_an_archive_with_a_folder_around_the_splits_and_a_file_beside_them(source, tmp_path, folder_storage):
    archive = tmp_path / "cats_and_dogs.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("cats_and_dogs/vectorize.py", "import this")
        for path in source.rglob("*.png"):
            opened.write(path, f"cats_and_dogs/{path.relative_to(source)}")
    assert ingested(archive, folder_storage, max_reject_share=0.1).counts == COUNTS


@pytest.mark.parametrize("options", [{}, {"splits": {"train": "train", "validation": "val", "test": "test"}}])
def test_prefixes_of_splits_in_a_bucket(source, s3_storage, options):
    store = open_store(s3_storage)
    for path in source.rglob("*.png"):
        store.put(f"photos/{path.relative_to(source)}", path)
    place = f"{s3_storage.uri}/photos"
    assert ingested(place, s3_storage, **options).counts == COUNTS
    assert ingested(place, s3_storage, subfolder="train", name="one").counts["test"] == {"cat": 0, "dog": 0}
    with pytest.raises(DatasetError, match=r"splits.test is `tests`, .* are `test`, `train`, `val`"):
        ingested(place, s3_storage, splits={"train": "train", "test": "tests"}, max_reject_share=0.9)


def test_a_bucket_is_not_listed_to_its_end_before_its_splits_are_recognized(s3_storage, monkeypatch):
    store = open_store(s3_storage)
    for split in ("train", "val"):
        for number in range(40):
            store.put(f"photos/{split}/{('cat', 'dog')[number % 2]}/{number}.png", b"x")
    listed, list_all = [], S3Store.list
    monkeypatch.setattr(S3Store, "list", lambda *given: (listed.append(item) or item for item in list_all(*given)))
    source = BucketFolderSource(s3_storage.model_copy(update={"uri": f"{s3_storage.uri}/photos"}), splits=None)
    first = next(source.entries())
    assert (first.key, first.label, first.split) == ("train/cat/0.png", "cat", "train")
    assert len(listed) < 5


def test_a_folder_that_is_no_split_is_ignored_and_one_inside_the_source_can_be_all_of_it(source, folder_storage):
    shutil.copytree(source / "val", source / "extra/more")
    (source / "extra/other").mkdir()
    dataset = ingested(source, folder_storage, splits={"train": "train", "validation": "extra/more"})
    assert dataset.counts["validation"] == COUNTS["validation"]
    ledger = read_ledger(open_store(folder_storage), dataset.rejects).to_pylist()
    assert [(row["key"], row["reason"]) for row in ledger] == [
        (key, "ignored") for key in ("extra/other", "test", "val")
    ]
    alone = ingested(source, folder_storage, name="alone", subfolder="extra/more", validation=0)
    assert alone.counts["train"] == COUNTS["validation"]
    assert alone.source["uri"] == f"{source}/extra/more"


def test_a_split_that_is_not_given_is_drawn_from_train_as_ever(tmp_path, folder_storage):
    source = write_splits(tmp_path / "images", {"train": {"cat": 20, "dog": 20}, "test": {"cat": 4, "dog": 4}})
    dataset = ingested(source, folder_storage)
    drawn = ingested(source / "train", folder_storage, name="drawn")
    assert dataset.counts["test"] == {"cat": 4, "dog": 4}
    given = splits_of(dataset, folder_storage)
    assert {key.removeprefix("train/"): split for key, split in given.items() if key.startswith("train/")} == splits_of(
        drawn, folder_storage
    )
    assert dataset.splitting.title == (
        "train, test as given by folders; validation 30 % drawn by each image's content, from train"
    )


def table_of(source, rows, header="path,label,split"):
    path = source / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_column_gives_splits_and_images_without_a_word_count_as_train(source, folder_storage):
    words = {"train": "", "val": "Dev", "test": " TESTING "}
    rows = [
        f"{path.relative_to(source)},{path.parent.name},{words[path.parts[-3]]}"
        for path in sorted(source.rglob("*.png"))
    ]
    dataset = ingested(table_of(source, rows), folder_storage, split_column="split")
    assert dataset.counts == COUNTS
    assert dataset.splitting.given_by == "the column `split`"


def test_an_unknown_word_in_the_column_is_refused_with_the_nearest_one(source, folder_storage):
    table = table_of(source, ["train/cat/00000.png,cat,train", "train/dog/00008.png,dog,tset"])
    message = refusal(table, folder_storage, split_column="split")
    assert "`tset` in row 2 of the column `split`" in message
    assert "did you mean `test`?" in message


@pytest.mark.parametrize(("options", "unused"), [({}, ["split", "Patient"]), ({"split_column": "split"}, ["Patient"])])
def test_columns_that_look_like_splits_and_groups_are_named_where_nothing_uses_them(
    source, folder_storage, caplog, options, unused
):
    rows = [
        f"{path.relative_to(source)},{path.parent.name},train,{path.stem}" for path in sorted(source.rglob("*.png"))
    ]
    ingested(table_of(source, rows, "path,label,split,Patient"), folder_storage, **options)
    said = [warning for warning in warnings_in(caplog) if "which is not used" in warning]
    assert [warning.split("`")[1] for warning in said] == unused


def test_the_same_bytes_in_two_given_splits_are_refused_or_kept_in_test(source, folder_storage):
    shutil.copy(source / "train/cat/00000.png", source / "test/cat/copy.png")
    # Train comes first in the source's order.
    options = {"splits": {"train": "train", "validation": "val", "test": "test"}}
    message = refusal(source, folder_storage, **options)
    assert "1 image is in several given splits" in message
    assert "test/cat/copy.png in test has the same bytes as train/cat/00000.png in train" in message
    splits = splits_of(ingested(source, folder_storage, prefer="test", **options), folder_storage)
    assert splits["test/cat/copy.png"] == "test"
    assert "train/cat/00000.png" not in splits


@pytest.mark.parametrize("why", ["names", "bytes"])
def test_a_class_that_is_given_to_held_out_splits_only_is_refused(source, folder_storage, why):
    if why == "names":
        write_classes(source / "val", first_seed=900, ant=2)
        write_classes(source / "test", first_seed=910, ant=1)
    else:  # The images that the class has in train turn out to be none.
        write_classes(source / "val", first_seed=900, ant=3)
        write_file(source / "train/ant/none.png", b"no image")
    options = {"splits": {"train": "train", "validation": "val", "test": "test"}, "max_reject_share": 0.1}
    found = "2 in validation and 1 in test" if why == "names" else "3 in validation"
    assert refusal(source, folder_storage, **options) == (
        f"All images of the class `ant` are given to splits that no model is trained on, {found}."
    )


def test_a_given_split_without_a_good_image_is_refused(source, folder_storage):
    for path in (source / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    assert "The test split is empty: the source gives it" in refusal(source, folder_storage, max_reject_share=0.5)


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ({"train": {"cat": 4}, "test": {"dog": 4}}, {}, "are `test`, `train`: splits, and no classes"),
        (
            BY_FOLDER | {"test": {"cat": 4, "dog": 4, "newt": 1}},
            {},
            "and no classes. The class folder `newt` is only in `test`, not in ",
        ),
        (BY_FOLDER | {"more": {"cat": 2}}, {}, "`train`, `val` (beside `more`): splits, and no classes"),
        (BY_FOLDER, {"splits": {"train": "training"}}, "`training`, and there is no such folder"),
        (BY_FOLDER, {"subfolder": "trian"}, "`trian`, and there is no such folder"),
        (BY_FOLDER, {"split_column": "split"}, "dataset.split_column is set, and dataset.source is"),
    ],
)
def test_what_cannot_be_known_or_found_is_refused(tmp_path, folder_storage, layout, options, said):
    assert said in refusal(write_splits(tmp_path / "images", layout), folder_storage, **options)


def test_folders_are_classes_whatever_their_names_where_splits_says_so(tmp_path, folder_storage):
    source = write_splits(tmp_path / "images", {"train": {"steam": 6}, "test": {"steam": 6}})
    assert ingested(source, folder_storage, splits={}).classes == ["test", "train"]


def test_a_class_may_be_called_train(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", car=6, train=6)
    assert ingested(source, folder_storage).classes == ["car", "train"]


def test_what_is_said_before_ingest_has_given_splits_with_their_counts_and_warnings(source, folder_storage):
    shutil.rmtree(source / "test/cat")
    options = {"splits": {"train": "train", "validation": "val", "test": "test"}}
    found = rehearsed(source, folder_storage, **options)
    assert found.splits == {"train": 16, "validation": 5, "test": 4}
    config, store = config_of(source, folder_storage, **options), open_store(folder_storage)
    network = NetworkFacts(parameters=1, blocks=1, trained=(1,), head=1, gpus=0)
    shown = for_people(overview(config, store, images=found, network=network, sweep=None), config)
    assert shown["images"] == "25: 16 train, 5 validation, 4 test"
    assert shown["splits"] == "train, validation, test as given by folders"
    assert shown["warnings"] == "Without test images, so the figures on that split say nothing of them: `cat`."


def test_what_is_expected_of_files_that_are_not_read_is_as_given(source, folder_storage, monkeypatch):
    monkeypatch.setattr("transfer.dataset.rehearsal.MOST_READ", 9)
    found = rehearsed(source, folder_storage)
    assert found.unknown
    assert found.splits == {split: sum(COUNTS[split].values()) for split in SPLITS}


def test_an_image_that_moved_to_another_split_is_said_to_have(source, folder_storage, caplog):
    first = ingested(source, folder_storage)
    write_file(source / "test/cat/moved.png", image(0))
    (source / "train/cat/00000.png").unlink()
    second = ingested(source, folder_storage)
    assert second.parent == first.number
    assert second.counts["test"]["cat"] == 3
    said = "1 image moved from train to test since pets/00000001, the first of them test/cat/moved.png."
    assert warnings_in(caplog) == [f"{said} Models of earlier versions were trained on it."]


def test_a_link_in_a_split_to_a_folder_that_is_in_none_is_followed(tmp_path, folder_storage):
    source = tmp_path / "photos"
    write_classes(source / "train", cat=12, dog=12)
    shutil.move(source / "train/cat", source / "pool")
    (source / "train/cat").symlink_to("../pool")
    dataset = ingest(config_of(source, folder_storage, splits={"train": "train"}), open_store(folder_storage))
    assert sum(dataset.counts[split]["cat"] for split in SPLITS) == 12
