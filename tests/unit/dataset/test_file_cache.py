"""What an ingest found in each file: used again where the file is the same, and never instead of looking."""

import hashlib
import os
import time
import zipfile
from collections import Counter
from dataclasses import replace

import boto3
import numpy as np
import pyarrow as pa
import pytest

from tests.images import encode, picture
from tests.sourcing import LONG_AGO_S, config_of, image, write_classes, write_file
from transfer.dataset import ingest as ingest_module
from transfer.dataset.decisions import start_over
from transfer.dataset.file_cache import SeenLog, nothing_seen
from transfer.dataset.ingest import ingest
from transfer.dataset.listing import Checked, CheckedColumns, Listing
from transfer.dataset.manifest import Reject
from transfer.dataset.shards import read_shard
from transfer.dataset.sources.folder import BucketFolderSource, FolderSource
from transfer.dataset.splits import nothing_given
from transfer.storage import Log, open_store


class Folder:
    """Class folders on this machine, whose files change at distinct times."""

    def __init__(self, folder):
        self.uri, self._folder, self._time_s = str(folder), folder, LONG_AGO_S

    def put(self, key, data):
        self._time_s += 1
        write_file(self._folder / key, data, at_s=self._time_s)

    def delete(self, key):
        (self._folder / key).unlink()


class BucketPrefix:
    """Class folders under a prefix of a bucket."""

    def __init__(self, storage):
        self.uri = f"{storage.uri}/photos"
        self._client = boto3.Session().client("s3", endpoint_url=storage.endpoint_url)
        self._bucket, _, self._prefix = self.uri.removeprefix("s3://").partition("/")

    def put(self, key, data):
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}", Body=data)

    def delete(self, key):
        self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")


@pytest.fixture
def images(storage, tmp_path):
    """Class folders where the storage is: 15 cats and 15 dogs."""
    images = BucketPrefix(storage) if storage.uri.startswith("s3://") else Folder(tmp_path / "images")
    for number in range(30):
        images.put(f"{'cat' if number % 2 else 'dog'}/{number:02d}.png", image(number))
    return images


@pytest.fixture
def read(monkeypatch):
    """Keys of the files that were read, as often as they were."""
    keys = []
    for kind in (FolderSource, BucketFolderSource):

        def counted(self, key, *, of=kind.read, **options):
            keys.append(key)
            return of(self, key, **options)

        monkeypatch.setattr(kind, "read", counted)
    return keys


def ingested(source, storage, **options):
    return ingest(config_of(source, storage, max_reject_share=0.5, **options), open_store(storage))


def seen_objects(storage):
    return [item.name for item in open_store(storage).list("seen/")]


def keys_of(dataset, storage):
    shards = [read_shard(open_store(storage), shard, columns=["key"]) for shard in dataset.shards]
    return {key for shard in shards for key in shard["key"].to_pylist()}


def test_a_file_that_did_not_change_is_not_read_again(images, storage, read):
    first = ingested(images.uri, storage)
    # To check it, and to store it.
    assert Counter(read) == Counter(2 * list(keys_of(first, storage)))
    before = seen_objects(storage)
    read.clear()
    assert ingested(images.uri, storage) == first
    assert read == []
    assert seen_objects(storage) == before


def test_only_what_is_new_or_changed_is_read(images, storage, read):
    ingested(images.uri, storage)
    images.put("cat/new.png", image(100))
    images.put("dog/00.png", image(101))
    images.put("dog/broken.png", b"broken")
    read.clear()
    second = ingested(images.uri, storage)
    assert {key for key, count in Counter(read).items() if count == 2} == {"cat/new.png", "dog/00.png"}
    assert second.reject_counts == {"not_an_image": 1}
    read.clear()
    assert ingested(images.uri, storage) == second
    assert read == []


def change_everything(images):
    """New, changed, deleted, renamed, touched, moved, copied and refused files."""
    images.put("cat/new.png", image(100))
    images.put("ant/new.png", image(101))
    images.put("ant/another.png", image(102))
    images.put("dog/00.png", image(103))
    images.delete("dog/02.png")
    images.delete("dog/04.png")
    images.put("dog/renamed.png", image(4))
    images.put("dog/06.png", image(6))
    images.delete("cat/01.png")
    images.put("dog/moved.png", image(1))
    images.put("cat/copy.png", image(3))
    images.put("cat/contrary.png", image(8))
    images.put("cat/broken.png", b"now an image no more")
    images.put("cat/mended.png", image(104))
    images.put("dog/empty.png", b"")


def test_a_version_is_the_same_to_the_bit_with_what_is_known_and_without(images, storage, monkeypatch):
    parts = [storage.model_copy(update={"uri": f"{storage.uri}/{name}"}) for name in ("knowing", "forgetful")]
    images.put("cat/broken.png", image(200))
    images.put("cat/mended.png", b"no image yet")
    images.put("cat/huge.png", image(201) + bytes(3_000))
    for number, change in ((1, None), (2, change_everything)):
        if change:
            change(images)
        knowing, forgetful = (
            _ingested_with(part, images, monkeypatch, forgets=part is parts[1], shard_size_bytes=9_000)
            for part in parts
        )
        assert knowing.model_copy(update={"created": forgetful.created}) == forgetful
        assert knowing.number == number
        assert set(knowing.reject_counts) > {"too_large_file"}
    contents = [_contents(part) for part in parts]
    assert contents[0] == contents[1]


def _ingested_with(storage, images, monkeypatch, *, forgets, **options):
    with monkeypatch.context() as context:
        if forgets:
            context.setattr(SeenLog, "read", lambda _: nothing_seen())
        return ingested(images.uri, storage, max_file_size_bytes=3_000, **options)


def _contents(storage):
    store = open_store(storage)
    # What a version says is compared above: it says when it was made, too.
    names = [item.name for item in store.list() if not item.name.startswith(("seen/", "datasets/"))]
    return {name: store.read(name) for name in names}


def test_a_file_that_was_only_touched_is_read_once_more(tmp_path, folder_storage, read):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    first = ingested(source, folder_storage)
    os.utime(source / "cat" / "00000.png", (1, 1))
    read.clear()
    assert ingested(source, folder_storage) == first
    assert read == ["cat/00000.png"]
    assert ingested(source, folder_storage) == first
    assert read == ["cat/00000.png"]


def test_a_file_of_the_same_time_as_the_listing_is_not_relied_on(tmp_path, folder_storage):
    """It could change in the same moment, and keep its time and its size."""
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    path = source / "cat" / "00000.bmp"
    soon_s = int(time.time()) + 3_600
    write_file(path, encode(picture(16, 16, seed=50), "BMP"), at_s=soon_s)
    ingested(source, folder_storage)
    changed = encode(picture(16, 16, seed=51), "BMP")
    write_file(path, changed, at_s=soon_s)
    second = ingested(source, folder_storage)
    store = open_store(folder_storage)
    digests = {digest for shard in second.shards for digest in read_shard(store, shard)["sha256"].to_pylist()}
    assert hashlib.sha256(changed).hexdigest() in digests


def test_a_change_that_a_listing_cannot_show_is_found_when_the_file_is_stored(tmp_path, folder_storage, caplog):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    for seed in (50, 51):
        write_file(source / "cat" / f"{seed}.bmp", encode(picture(16, 16, seed=seed), "BMP"))
    ingested(source, folder_storage, validation=0.0)
    # The same size and the same time; and the dataset starts over, so that every image is stored anew.
    write_file(source / "cat" / "50.bmp", encode(picture(16, 16, seed=52), "BMP"))
    start_over(open_store(folder_storage), "pets", reason="a test")
    second = ingested(source, folder_storage, validation=0.0)
    assert "cat/50.bmp changed between" in caplog.text
    other = folder_storage.model_copy(update={"uri": str(tmp_path / "other")})
    assert second.shards == ingested(source, other, validation=0.0).shards


def test_another_check_and_another_source_know_nothing(tmp_path, folder_storage, read):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    first = ingested(source, folder_storage)
    for options in ({"max_pixels": 1_000}, {"max_file_size_bytes": 9_999}, {"transcode": True}):
        read.clear()
        assert ingested(source, folder_storage, **options) == first
        assert len(read) == 20
    elsewhere = source.rename(tmp_path / "elsewhere")
    read.clear()
    assert ingested(elsewhere, folder_storage, transcode=True) == first
    assert len(read) == 20


def test_what_another_release_of_a_decoder_found_does_not_count(tmp_path, folder_storage, read, monkeypatch):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    first = ingested(source, folder_storage)
    monkeypatch.setattr("transfer.dataset.file_cache.version", lambda _: "0.0.0")
    read.clear()
    assert ingested(source, folder_storage) == first
    assert len(read) == 20


def _flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["*.parquet", "pets/*.json"])
@pytest.mark.parametrize("harm", [_flip_a_byte, os.unlink])
def test_where_what_is_known_is_damaged_everything_is_read_again(tmp_path, folder_storage, read, caplog, what, harm):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    first = ingested(source, folder_storage)
    (path,) = (tmp_path / "storage" / "seen").glob(what)
    path.chmod(0o600)
    harm(path)
    read.clear()
    assert ingested(source, folder_storage) == first
    assert len(read) == 20
    assert len(caplog.records) == (0 if (what, harm) == ("pets/*.json", os.unlink) else 1)
    read.clear()
    assert ingested(source, folder_storage) == first
    # What lies there damaged is not overwritten.
    assert len(read) == (20 if (what, harm) == ("*.parquet", _flip_a_byte) else 0)


def test_a_file_of_an_archive_is_known_by_its_bytes(tmp_path, folder_storage, read):
    source = write_classes(tmp_path / "images", cat=10, dog=10)

    def packed():
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for path in sorted(source.glob("*/*")):
                archive.write(path, path.relative_to(source))
        return tmp_path / "images.zip"

    first = ingested(packed(), folder_storage)
    read.clear()
    assert ingested(packed(), folder_storage) == first
    assert read == []
    # Of the same time, and of the same size in the archive's list.
    write_file(source / "cat" / "00000.png", image(99).ljust(len(image(0)), b"\0"))
    ingested(packed(), folder_storage)
    assert Counter(read)["cat/00000.png"] == 2


def test_a_failed_ingest_leaves_what_it_found(tmp_path, folder_storage, read, monkeypatch):
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    with monkeypatch.context() as context:
        context.setattr(ingest_module, "build_shard", None)
        with pytest.raises(TypeError):
            ingested(source, folder_storage)
    read.clear()
    ingested(source, folder_storage)
    assert Counter(read) == Counter(set(read))


def listing_of(count):
    marks = np.random.default_rng(0).integers(1, 2**63, (count, 2), np.uint64)
    keys = [f"cat/{number}" for number in range(count)]
    return Listing(
        pa.chunked_array([pa.array(keys)]),
        np.zeros(count, np.int32),
        np.full(count, 9),
        marks,
        ["cat"],
        rejects=[],
        given=nothing_given(count),
    )


def checked_of(*outcomes):
    checked = CheckedColumns()
    for row, outcome in outcomes:
        checked.add(row, outcome)
    return checked


@pytest.fixture
def log(folder_storage):
    return SeenLog(open_store(folder_storage), "pets", source="/images", check="1")


def test_what_is_found_is_given_back_for_the_rows_of_another_listing(log):
    listing = listing_of(6)
    found = [(row, Checked(bytes([row]) * 32, 10 + row, 20 + row, 30 + row)) for row in (4, 0, 3)]
    log.add(listing, checked_of(*found, (1, Reject("cat/1", "corrupt", "It is broken."))))
    order = np.array([5, 4, 3, 2, 1, 0])
    turned = replace(listing, keys=listing.keys.take(pa.array(order)), marks=listing.marks[order])
    checked, unknown = log.read().recall(turned)
    assert unknown.tolist() == [0, 3]
    assert checked.refused == {4: Reject("cat/1", "corrupt", "It is broken.")}
    columns = (checked.rows, checked.widths, checked.heights, checked.sizes_bytes)
    assert list(zip(*columns, strict=True)) == [(1, 14, 24, 34), (2, 13, 23, 33), (5, 10, 20, 30)]
    assert checked.digests == bytes([4] * 32 + [3] * 32 + [0] * 32)


def test_a_file_that_could_not_be_read_is_tried_again(log):
    listing = listing_of(3)
    refused = [(row, Reject(f"cat/{row}", reason, "")) for row, reason in enumerate(["missing", "unreadable", "empty"])]
    log.add(listing, checked_of(*refused))
    _, unknown = log.read().recall(listing)
    assert unknown.tolist() == [0, 1]


def test_a_file_without_a_stamp_is_not_kept(log, folder_storage):
    listing = listing_of(2)
    listing.marks[:] = 0
    log.add(listing, checked_of((0, Checked(bytes(32), 1, 1, 1)), (1, Checked(bytes(32), 1, 1, 1))))
    assert seen_objects(folder_storage) == []


def test_an_entry_is_added_only_where_it_says_something_else(log, folder_storage):
    listing = listing_of(3)
    numbers = Log(open_store(folder_storage), "seen/pets").numbers
    log.add(listing, checked_of((0, Checked(bytes(32), 1, 1, 1)), (1, Checked(bytes(32), 1, 1, 1))))
    log.add(listing, checked_of((1, Checked(bytes(32), 1, 1, 1)), (0, Checked(bytes(32), 1, 1, 1))))
    assert numbers() == [1]
    log.add(listing, checked_of((1, Checked(bytes(32), 1, 1, 1))))
    assert numbers() == [1, 2]
    replace(log, check="2").add(listing, checked_of((1, Checked(bytes(32), 1, 1, 1))))
    assert numbers() == [1, 2, 3]
