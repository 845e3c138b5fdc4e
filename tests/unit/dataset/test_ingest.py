"""From images to dataset versions: what is stored, what is found again, how a dataset grows."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.images import encode, picture, with_alpha
from tests.sourcing import config_of, image, read_ledger, write_classes
from transfer.dataset import ingest as ingest_module
from transfer.dataset import shard_plan
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import dataset_log, load_dataset
from transfer.dataset.shards import read_shard
from transfer.dataset.sources.folder import FolderSource
from transfer.dataset.splits import SPLITS
from transfer.errors import AlreadyExistsError, CorruptObjectError, DatasetError, ObjectNotFoundError
from transfer.storage import open_store, sha256_hex


@pytest.fixture
def source(tmp_path):
    """20 cats and 20 dogs."""
    return write_classes(tmp_path / "images", cat=20, dog=20)


def rows_of(store, dataset):
    return {
        row["key"]: row | {"split": shard.split}
        for shard in dataset.shards
        for row in read_shard(store, shard).to_pylist()
    }


def objects_of(store):
    return {item.name for item in store.list()}


def ledger_of(store, dataset):
    return {row["key"]: row["reason"] for row in read_ledger(store, dataset.rejects).to_pylist()}


def ingested(source, storage, **options):
    store = open_store(storage)
    return store, ingest(config_of(source, storage, **options), store)


def test_every_image_is_stored_as_it_came_with_label_digest_and_size(source, storage):
    store, dataset = ingested(source, storage)
    rows = rows_of(store, dataset)
    assert len(rows) == 40
    for key, row in rows.items():
        data = (source / key).read_bytes()
        assert row["image"] == data
        assert row["sha256"] == sha256_hex(data)
        assert (row["width"], row["height"]) == (16, 16)
        assert dataset.classes[row["label"]] == key.split("/")[0]
    assert dataset.reference == "pets/00000001"
    assert dataset.parent is None
    assert dataset.rejects is None


def test_the_version_counts_what_its_shards_hold(source, folder_storage):
    store, dataset = ingested(source, folder_storage, shard_size_bytes=5_000, test=0.2)
    rows = rows_of(store, dataset).values()
    for split in SPLITS:
        assert dataset.rows(split) == sum(row["split"] == split for row in rows) > 0
        for index, name in enumerate(dataset.classes):
            found = sum(row["split"] == split and row["label"] == index for row in rows)
            assert dataset.counts[split][name] == found
    assert len(dataset.shards_of("train")) > 2
    assert load_dataset(store, "pets") == load_dataset(store, "pets", 1) == dataset


def test_rows_of_a_shard_are_sorted_by_digest(source, folder_storage):
    store, dataset = ingested(source, folder_storage)
    for shard in dataset.shards:
        digests = read_shard(store, shard)["sha256"].to_pylist()
        assert digests == sorted(digests)


def test_the_same_images_again_are_the_same_version_and_nothing_is_written(source, storage, monkeypatch):
    store, dataset = ingested(source, storage)
    before = objects_of(store)
    monkeypatch.setattr(ingest_module, "build_shard", None)
    assert ingested(source, storage)[1] == dataset
    assert objects_of(store) == before


def test_the_same_images_from_elsewhere_are_the_same_version(source, folder_storage, tmp_path):
    _, dataset = ingested(source, folder_storage)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", source)
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in source.glob("*/*")))
    for other in (archive, table):
        assert ingested(other, folder_storage)[1] == dataset


def test_the_same_images_under_another_name_share_their_shards(source, folder_storage):
    _, first = ingested(source, folder_storage)
    _, second = ingested(source, folder_storage, name="other")
    assert second.reference == "other/00000001"
    assert second.shards == first.shards


def test_new_images_and_classes_are_added_and_old_shards_and_indices_stay(source, folder_storage):
    _, first = ingested(source, folder_storage, shard_size_bytes=5_000)
    write_classes(source, first_seed=1000, cat=5, ant=10)
    store, second = ingested(source, folder_storage, shard_size_bytes=5_000)
    assert (second.number, second.parent) == (2, 1)
    assert second.classes == ["cat", "dog", "ant"]
    assert second.shards[: len(first.shards)] == first.shards
    assert sum(second.rows(split) for split in SPLITS) == 55
    assert {row["label"] for key, row in rows_of(store, second).items() if key.startswith("ant")} == {2}
    assert load_dataset(store, "pets", 1) == first


def test_a_removed_image_leaves_the_next_version_and_no_shard_is_written(source, folder_storage):
    store, first = ingested(source, folder_storage, shard_size_bytes=5_000)
    gone = read_shard(store, first.shards[1])["key"][2].as_py()
    (source / gone).unlink()
    _, second = ingested(source, folder_storage, shard_size_bytes=5_000)
    assert set(rows_of(store, second)) == set(rows_of(store, first)) - {gone}
    assert second.shards == [first.shards[0], first.shards[1].without(np.array([2])), *first.shards[2:]]
    assert sum(second.counts["train"].values()) == second.rows("train")
    assert gone in rows_of(store, load_dataset(store, "pets", 1))
    assert ingested(source, folder_storage, shard_size_bytes=5_000)[1] == second


def test_nights_put_small_shards_together_and_read_no_old_image_from_the_source(source, folder_storage, monkeypatch):
    read = []
    of_folder = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, key, **o: read.append(key) or of_folder(self, key, **o))
    monkeypatch.setattr(shard_plan, "MAX_SMALL", 3)
    known, sizes = set(), []
    for night in range(4):
        write_classes(source, first_seed=1000 * (night + 1), cat=night + 1 if night else 10)
        read.clear()
        store, dataset = ingested(source, folder_storage, validation=0.0)
        assert known.isdisjoint(read)
        rows = rows_of(store, dataset)
        assert {key: (source / key).read_bytes() for key in rows} == {key: row["image"] for key, row in rows.items()}
        assert [sha256_hex(row["image"]) for row in rows.values()] == [row["sha256"] for row in rows.values()]
        known = {*rows}
        sizes.append([shard.rows for shard in dataset.shards])
    # The fourth would have been one shard too many, so the two smallest ones became one.
    assert sizes == [[50], [50, 2], [50, 2, 3], [50, 5, 4]]
    assert len(known) == 59


def test_a_shard_that_is_copied_has_what_it_was_copied_from_or_says_so(source, folder_storage):
    store, first = ingested(source, folder_storage, validation=0.0)
    for key in [*rows_of(store, first)][:11]:
        (source / key).unlink()
    path = store.folder / first.shards[0].name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptObjectError, match=first.shards[0].name):
        ingested(source, folder_storage, validation=0.0)
    assert load_dataset(store, "pets") == first


def test_an_image_that_moves_to_another_class_gets_the_other_label(source, folder_storage):
    store, _ = ingested(source, folder_storage)
    (source / "cat" / "00000.png").rename(source / "dog" / "00000.png")
    _, second = ingested(source, folder_storage)
    assert rows_of(store, second)["dog/00000.png"]["label"] == 1
    assert "cat/00000.png" not in rows_of(store, second)


def test_images_keep_their_split_when_others_come_and_go(source, folder_storage):
    store, first = ingested(source, folder_storage)
    before = {row["sha256"]: row["split"] for row in rows_of(store, first).values()}
    write_classes(source, first_seed=1000, cat=10)
    shutil.copy(source / "dog" / "00030.png", source / "dog" / "renamed.png")
    (source / "dog" / "00030.png").unlink()
    after = {row["sha256"]: row["split"] for row in rows_of(store, ingested(source, folder_storage)[1]).values()}
    assert before.items() <= after.items()


def test_another_share_of_a_split_is_another_version(source, folder_storage):
    _, first = ingested(source, folder_storage, validation=0.3)
    _, second = ingested(source, folder_storage, validation=0.6)
    assert second.number == 2
    assert second.rows("validation") > first.rows("validation")


def test_copies_are_stored_once_and_listed(source, folder_storage):
    for number in range(10):
        shutil.copy(source / "cat" / "00003.png", source / "cat" / f"copy{number}.png")
    store, dataset = ingested(source, folder_storage, max_reject_share=0.0)
    assert len(rows_of(store, dataset)) == 40
    assert dataset.reject_counts == {"duplicate": 10}
    assert set(ledger_of(store, dataset).values()) == {"duplicate"}


def test_copies_with_different_labels_are_refused(source, folder_storage):
    shutil.copy(source / "cat" / "00003.png", source / "dog" / "00003.png")
    with pytest.raises(DatasetError, match=r"2 of 41 images were refused .* labeled cat; dog/00003.png"):
        ingested(source, folder_storage)
    store, dataset = ingested(source, folder_storage, max_reject_share=0.1)
    assert ledger_of(store, dataset) == {
        "cat/00003.png": "conflicting_labels",
        "dog/00003.png": "conflicting_labels",
    }
    assert len(rows_of(store, dataset)) == 39


def test_what_is_refused_is_in_the_ledger_with_its_reason(source, folder_storage):
    (source / "cat" / "empty.jpg").touch()
    (source / "cat" / "text.jpg").write_text("not an image")
    (source / "cat" / "large.png").write_bytes(image(0) + bytes(20_000))
    (source / "cat" / "wide.png").write_bytes(encode(Image.new("RGB", (200, 200)), "PNG"))
    (source / "cat" / "old.tiff").write_bytes(encode(picture(), "TIFF"))
    (source / "notes.txt").touch()
    (source / ".hidden").touch()
    store, dataset = ingested(
        source, folder_storage, max_reject_share=0.5, max_pixels=10_000, max_file_size_bytes=20_000
    )
    assert ledger_of(store, dataset) == {
        "cat/empty.jpg": "empty",
        "cat/text.jpg": "not_an_image",
        "cat/large.png": "too_large_file",
        "cat/wide.png": "pixel_bomb",
        "cat/old.tiff": "unsupported_format",
        "notes.txt": "no_class_folder",
        ".hidden": "ignored",
    }
    assert sum(dataset.reject_counts.values()) == 7
    assert len(rows_of(store, dataset)) == 40


def test_what_was_refused_is_said_of_unchanged_images_only_if_something_was(source, folder_storage, caplog):
    caplog.set_level("INFO")
    for name, said in (("one.jpg", False), ("other.jpg", True), (None, False)):
        for broken in source.glob("cat/*.jpg"):
            broken.unlink()
        if name:
            (source / "cat" / name).write_text("not an image")
        caplog.clear()
        _, dataset = ingested(source, folder_storage, max_reject_share=0.1)
        assert dataset.number == 1
        assert ("What was refused this time is in rejects/" in caplog.text) == said
        assert "None" not in caplog.text


def test_a_file_that_is_too_large_is_not_even_read(source, folder_storage):
    with (source / "cat" / "huge.png").open("wb") as file:
        file.truncate(1024**4)  # Sparse: there is no such memory.
    store, dataset = ingested(source, folder_storage, max_reject_share=0.1)
    assert ledger_of(store, dataset) == {"cat/huge.png": "too_large_file"}


def test_a_missing_file_of_a_table_is_in_the_ledger(source, folder_storage):
    lines = [f"{path},{path.parent.name}" for path in source.glob("*/*")]
    table = source / "table.csv"
    table.write_text("\n".join(["path,label", *lines, "cat/gone.png,cat"]))
    store, dataset = ingested(table, folder_storage, max_reject_share=0.1)
    assert ledger_of(store, dataset) == {"cat/gone.png": "missing"}


def test_transcoded_images_are_stored_as_png_under_the_digest_of_the_png(source, folder_storage):
    (source / "cat" / "old.tiff").write_bytes(encode(picture(seed=7), "TIFF"))
    store, dataset = ingested(source, folder_storage, transcode=True)
    row = rows_of(store, dataset)["cat/old.tiff"]
    assert row["image"].startswith(b"\x89PNG")
    assert row["sha256"] == sha256_hex(row["image"])
    assert ingested(source, folder_storage, transcode=True)[1] == dataset


def test_another_background_is_another_version_on_which_transparent_images_are_stored(source, folder_storage):
    (source / "cat" / "cut-out.png").write_bytes(encode(with_alpha(picture(seed=7)), "PNG"))
    _, first = ingested(source, folder_storage)
    store, white = ingested(source, folder_storage, background="white")
    assert (first.background, white.background, white.number) == (None, "#ffffff", 2)
    with Image.open(io.BytesIO(rows_of(store, white)["cat/cut-out.png"]["image"])) as stored:
        assert stored.getpixel((0, 0)) == (255, 255, 255)
    assert ingested(source, folder_storage, background="#FFFFFF")[1] == white
    (source / "cat" / "cut-out.png").unlink()
    without = ingested(source, folder_storage, background="white")[1]
    # The same images, and the model will put others on another color.
    assert ingested(source, folder_storage)[1].number == without.number + 1


def test_another_check_option_is_another_version_only_if_it_changes_the_images(source, folder_storage):
    _, first = ingested(source, folder_storage)
    assert ingested(source, folder_storage, max_pixels=1_000)[1] == first
    (source / "cat" / "wide.png").write_bytes(encode(picture(100, 100), "PNG"))
    assert ingested(source, folder_storage, max_pixels=1_000, max_reject_share=0.5)[1] == first
    assert ingested(source, folder_storage, max_pixels=10_000)[1].number == 2


def test_a_file_that_changes_between_the_passes_is_found_and_nothing_is_committed(source, folder_storage, monkeypatch):
    real = ingest_module.build_shard

    def change_then_build(task, **options):
        (source / "cat" / "00000.png").write_bytes(image(999))
        return real(task, **options)

    monkeypatch.setattr(ingest_module, "build_shard", change_then_build)
    with pytest.raises(DatasetError, match=r"cat/00000.png changed between"):
        ingested(source, folder_storage)
    store = open_store(folder_storage)
    with pytest.raises(DatasetError, match="no dataset `pets`"):
        load_dataset(store, "pets")
    monkeypatch.undo()
    assert ingested(source, folder_storage)[1].number == 1


def test_a_lost_race_is_planned_again_on_the_winner(source, folder_storage, monkeypatch):
    """Another ingest, of fewer images, commits while this one is writing its shards."""
    few = write_classes(source.parent / "few", cat=8, dog=8)
    real = ingest_module.build_shard

    def lose_then_build(task, **options):
        monkeypatch.setattr(ingest_module, "build_shard", real)
        ingested(few, folder_storage)
        return real(task, **options)

    monkeypatch.setattr(ingest_module, "build_shard", lose_then_build)
    store, dataset = ingested(source, folder_storage)
    assert (dataset.number, dataset.parent) == (2, 1)
    assert dataset_log(store, "pets").numbers() == [1, 2]
    assert sum(dataset.rows(split) for split in SPLITS) == 40


def test_losing_the_race_again_is_a_clear_error(source, folder_storage, monkeypatch):
    store = open_store(folder_storage)
    dataset_log(store, "pets").append(ingested(source, folder_storage, name="other")[1].model_dump())
    monkeypatch.setattr(ingest_module, "latest_dataset", lambda *_: None)
    with pytest.raises(AlreadyExistsError, match="pets/00000001"):
        ingested(source, folder_storage)


def test_a_shard_that_went_elsewhere_stops_the_version(source, folder_storage, tmp_path):
    elsewhere = folder_storage.model_copy(update={"uri": str(tmp_path / "elsewhere")})
    store = open_store(elsewhere)
    with pytest.raises(DatasetError, match="is not in") as caught:
        ingest(config_of(source, folder_storage), store)
    assert "mount" in caught.value.advice
    assert dataset_log(store, "pets").numbers() == []


def test_a_version_that_is_not_there_or_damaged_says_so(source, folder_storage):
    store, _ = ingested(source, folder_storage)
    with pytest.raises(ObjectNotFoundError, match="00000007"):
        load_dataset(store, "pets", 7)
    path = next(item.name for item in store.list("datasets/pets/"))
    file = source.parent / "storage" / path
    document = json.loads(file.read_text())
    document["document"]["classes"].reverse()
    file.write_text(json.dumps(document))
    with pytest.raises(CorruptObjectError):
        load_dataset(store, "pets")


def test_a_version_of_a_later_format_says_so(folder_storage, source):
    store, dataset = ingested(source, folder_storage)
    dataset_log(store, "pets").append(dataset.model_dump() | {"format": 2, "number": 2})
    with pytest.raises(CorruptObjectError, match="format 1"):
        load_dataset(store, "pets")


def test_images_in_a_bucket_go_to_shards_in_the_bucket(s3_storage):
    store = open_store(s3_storage)
    for number in range(30):
        store.put(f"photos/{'cat' if number % 2 else 'dog'}/{number}.png", image(number))
    _, dataset = ingested(f"{s3_storage.uri}/photos", s3_storage)
    assert len(rows_of(store, dataset)) == 30
    assert dataset.source == {"kind": "folder", "uri": f"{s3_storage.uri}/photos"}
