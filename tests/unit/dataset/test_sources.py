"""Class folders, here and in a bucket, keys, and the digits."""

import io
import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import s3_client
from tests.sourcing import LIMIT, bytes_of, config_of, everything_of, image, write_classes, write_file
from transfer.config import DatasetConfig
from transfer.dataset.listing import list_source
from transfer.dataset.manifest import Reject
from transfer.dataset.sources import open_source, write_digits
from transfer.dataset.sources.base import class_name_of, key_of, name_of, read_file
from transfer.dataset.sources.digits import IMAGE_SIZE
from transfer.dataset.sources.tfds import folders_of_splits, write_split
from transfer.errors import ConfigError, DatasetError, StorageError
from transfer.storage import open_store

NFC, NFD = "caf\u00e9", "cafe\u0301"


def filled(storage, tmp_path, names):
    """A folder, or a prefix where that is the storage, with an object of each name."""
    for name in names:
        if storage.uri.startswith("s3://"):
            open_store(storage).put(f"source/{name}", name.encode())
        else:
            write_file(tmp_path / "source" / name, name.encode())
    return f"{storage.uri}/source" if storage.uri.startswith("s3://") else tmp_path / "source"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cat/1.jpg", "cat/1.jpg"),
        ("cat/a b.jpg", "cat/a b.jpg"),
        (NFC, NFC),
        (NFD, "cafe%CC%81"),
        ("50%.jpg", "50%25.jpg"),
        ("two\nlines.jpg", "two%0Alines.jpg"),
        (os.fsdecode(b"latin\xe9.jpg"), "latin%E9.jpg"),
        # The digits of the escape must not join the accent.
        ("\n\u0300", "%0A%CC%80"),
    ],
)
def test_a_key_shows_the_name_and_escapes_what_cannot_be_shown(name, key):
    assert key_of(name) == key
    assert name_of(key) == name


@given(st.binary(max_size=12))
def test_every_file_name_has_its_own_printable_key(name):
    key = key_of(os.fsdecode(name))
    assert os.fsencode(name_of(key)) == name
    assert key.isprintable()
    key.encode()


def test_folders_below_a_class_belong_to_the_class(tmp_path, folder_storage):
    write_classes(tmp_path / "cat" / "indoor", tabby=1)
    write_classes(tmp_path, dog=1)
    entries, rejects = everything_of(tmp_path, folder_storage)
    assert entries == {"cat/indoor/tabby/00000.png": "cat", "dog/00000.png": "dog"}
    assert rejects == {}


def test_hidden_files_are_ignored_and_counted_and_files_without_class_are_refused(tmp_path, folder_storage):
    write_classes(tmp_path, cat=1, dog=1)
    for name in ("cat/.hidden.png", "cat/Thumbs.db", ".DS_Store", "README.txt", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    entries, rejects = everything_of(tmp_path, folder_storage)
    assert set(entries) == {"cat/00000.png", "dog/00001.png"}
    assert rejects == {
        ".DS_Store": "ignored",
        ".git": "ignored",
        "README.txt": "no_class_folder",
        "cat/.hidden.png": "ignored",
        "cat/Thumbs.db": "ignored",
    }


@pytest.mark.parametrize(
    "name", ["Thumbs.DB", "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/1.png", "lost+found/1.png"]
)
def test_what_systems_and_network_drives_leave_behind_is_ignored(storage, tmp_path, name):
    source = filled(storage, tmp_path, [f"cat/{name}", "cat/1.png", "dog/2.png", name])
    entries, rejects = everything_of(source, storage)
    assert entries == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert set(rejects.values()) == {"ignored"}


def test_sidecar_files_of_an_image_are_ignored_and_others_are_not(storage, tmp_path):
    sidecars = ["cat/1.json", "cat/1.xml", "cat/1.jpg.supplemental-metadata.json", "cat/deep/2.TXT"]
    images = ["cat/1.jpg", "cat/1-more.jpg", "cat/deep/2.jpg", "dog/3.jpg", "dog/classes.txt"]
    entries, rejects = everything_of(filled(storage, tmp_path, [*sidecars, *images]), storage)
    assert set(entries) == set(images)
    assert rejects == dict.fromkeys(sidecars, "ignored")


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("masks", ["cat/masks/1.png", "masks/4.png"]),
        ("*_thumb.*", ["cat/1_thumb.png"]),
        ("cat/masks/", ["cat/masks/1.png"]),
        ("*/masks/*.png", ["cat/masks/1.png"]),
        ("caf\u00e9.png", ["cat/cafe%CC%81.png"]),
        ("[12]*.png", ["cat/1.png", "cat/1_thumb.png", "cat/masks/1.png", "dog/2.png"]),
    ],
)
def test_what_a_pattern_of_exclude_matches_is_left_out(tmp_path, folder_storage, pattern, left_out):
    names = ["cat/1.png", "cat/1_thumb.png", "cat/masks/1.png", f"cat/{NFD}.png", "dog/2.png", "masks/4.png"]
    source = filled(folder_storage, tmp_path, names)
    entries, rejects = everything_of(source, folder_storage, exclude=[pattern])
    assert rejects == dict.fromkeys(left_out, "ignored")
    assert set(entries) == {key_of(name) for name in names} - set(left_out)


def test_an_excluded_folder_is_no_class_and_what_lies_beside_the_classes_can_be_excluded(tmp_path, folder_storage):
    source = filled(folder_storage, tmp_path, ["cat/1.png", "dog/2.png", "masks/3.png", "labels.csv"])
    config = DatasetConfig(source=str(source), exclude=["masks", "*.csv"])
    with open_source(config, folder_storage) as opened:
        listing = list_source(opened, renames={})
    assert listing.labels == ["cat", "dog"]
    assert {reject.key: reject.reason for reject in listing.rejects} == {
        "labels.csv": "ignored",
        "masks/3.png": "ignored",
    }


def test_only_the_classes_that_are_asked_for_are_taken(tmp_path, folder_storage):
    source = filled(folder_storage, tmp_path, ["cat/1.png", "dog/2.png", "bird/3.png"])
    entries, rejects = everything_of(
        source, folder_storage, classes=["dog", "feline"], rename_classes={"cat": "feline"}
    )
    assert entries == {"cat/1.png": "feline", "dog/2.png": "dog"}
    assert rejects == {"bird/3.png": "ignored"}
    with pytest.raises(DatasetError, match=r"dataset.classes has `dig`, .* no such class; near it: `dog`"):
        everything_of(source, folder_storage, classes=["cat", "dig"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_file_names_neither_crash_nor_collide(tmp_path, folder_storage):
    (tmp_path / "cat").mkdir()
    names = [b"two\nlines", b"two%0Alines", b"latin\xe9", NFC.encode(), NFD.encode(), b"\\", b"a b"]
    for number, name in enumerate(names):
        (tmp_path / "cat" / os.fsdecode(name)).write_bytes(image(number))
    found = bytes_of(tmp_path, folder_storage)
    assert len(found) == len(names)
    assert set(found.values()) == {image(number) for number in range(len(names))}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_class_folder_of_bytes_that_are_no_text_gets_a_name_that_is():
    assert class_name_of(os.fsdecode(b"caf\xe9")) == "caf%E9"
    assert class_name_of(NFD) == NFC
    assert class_name_of("100% wool") == "100% wool"


def test_links_are_followed_and_circles_end(tmp_path, folder_storage):
    write_classes(tmp_path / "elsewhere", cat=1)
    source = write_classes(tmp_path / "source", dog=1)
    (source / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (source / "dog" / "again").symlink_to(source / "dog")
    (source / "dog" / "nothing.png").symlink_to(tmp_path / "nothing")
    (source / "dog" / "itself.png").symlink_to(source / "dog" / "itself.png")
    entries, rejects = everything_of(source, folder_storage)
    assert entries == {"cat/00000.png": "cat", "dog/00000.png": "dog"}
    assert rejects == {"dog/again": "ignored", "dog/nothing.png": "missing", "dog/itself.png": "unreadable"}


def test_a_link_to_what_holds_the_source_or_is_in_it_is_ignored(tmp_path, folder_storage):
    source = write_classes(tmp_path / "around" / "source", cat=1, dog=1)
    write_classes(source / ".hidden", bird=1)
    for name, target in {
        "cat/root": source,
        "cat/around": tmp_path / "around",
        "cat/dogs": source / "dog",
        "again": source,
        "kitten": source / "cat",
        # Nobody lists it there.
        "bird": source / ".hidden" / "bird",
    }.items():
        (source / name).symlink_to(target)
    entries, rejects = everything_of(source, folder_storage)
    assert entries == {"bird/00000.png": "bird", "cat/00000.png": "cat", "dog/00001.png": "dog"}
    assert rejects == dict.fromkeys([".hidden", "again", "kitten", "cat/root", "cat/around", "cat/dogs"], "ignored")


def test_files_behind_two_links_are_read_once_in_a_class(tmp_path, folder_storage):
    outside = write_classes(tmp_path / "outside", one=1)
    source = write_classes(tmp_path / "source", cat=0, dog=0)
    for name in ("cat/a", "cat/b", "dog/a"):
        (source / name).symlink_to(outside)
    entries, rejects = everything_of(source, folder_storage)
    # That two classes have it is a conflict of labels, which is found when it is read.
    assert entries == {"cat/a/one/00000.png": "cat", "dog/a/one/00000.png": "dog"}
    assert rejects == {"cat/b": "ignored"}


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path, folder_storage):
    write_classes(tmp_path, cat=1, dog=1)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    _, rejects = everything_of(tmp_path, folder_storage)
    assert rejects == {"cat/pipe.png": "unreadable"}
    assert read_file(tmp_path / "cat" / "pipe.png", "k", max_size_bytes=9) == Reject(
        "k", "unreadable", "not a regular file"
    )


def test_an_empty_class_folder_is_a_class(tmp_path, folder_storage):
    write_classes(tmp_path, cat=1, dog=0)
    with open_source(DatasetConfig(source=str(tmp_path)), folder_storage) as source:
        assert {item.name for item in source.entries() if not hasattr(item, "key")} == {"cat", "dog"}


def test_a_file_is_read_no_further_than_allowed(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(100))
    assert len(read_file(path, "large", max_size_bytes=10)) == 11


def test_class_folders_under_an_s3_prefix(s3_storage):
    store = open_store(s3_storage)
    for name in (
        "photos/cat/deep/1.png",
        "photos/dog/2.png",
        "photos/notes.txt",
        "photos/cat/.hidden",
        "other/x/3.png",
    ):
        store.put(name, name.encode())
    source = f"{s3_storage.uri}/photos"
    entries, rejects = everything_of(source, s3_storage)
    assert entries == {"cat/deep/1.png": "cat", "dog/2.png": "dog"}
    assert rejects == {"cat/.hidden": "ignored", "notes.txt": "no_class_folder"}
    assert bytes_of(source, s3_storage)["dog/2.png"] == b"photos/dog/2.png"


def test_an_object_whose_name_storage_refuses_is_a_reject(s3_storage):
    import boto3

    client = boto3.Session().client("s3", endpoint_url=s3_storage.endpoint_url)
    bucket, _, prefix = s3_storage.uri.removeprefix("s3://").partition("/")
    for name in ("cat/two\tparts.png", "cat//1.png", "dog/%0A.png"):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"x")
    client.close()
    entries, rejects = everything_of(s3_storage.uri, s3_storage)
    assert entries == {"dog/%250A.png": "dog"}
    assert rejects == {"cat/two%09parts.png": "unreadable", "cat//1.png": "unreadable"}
    assert bytes_of(s3_storage.uri, s3_storage) == {"dog/%250A.png": b"x"}


def test_an_object_that_is_gone_is_missing(s3_storage):
    with open_source(DatasetConfig(source=s3_storage.uri), s3_storage) as source:
        assert source.read("cat/1.png", max_size_bytes=LIMIT).reason == "missing"


def test_an_archived_object_is_unreadable(s3_server, s3_storage, pytestconfig):
    if pytestconfig.getoption("--s3") != "emulator":
        pytest.skip("Other services need not have archive tiers, and Ceph has none.")
    bucket, _, prefix = s3_storage.uri.removeprefix("s3://").partition("/")
    s3_client(s3_server).put_object(Bucket=bucket, Key=f"{prefix}/cat/1.png", Body=b"x", StorageClass="GLACIER")
    found = bytes_of(s3_storage.uri, s3_storage)["cat/1.png"]
    assert (found.reason, "must be restored" in found.detail) == ("unreadable", True)


@pytest.mark.parametrize("name", ["fotos", "fotos.zip", "fotos.parquet", "fotos.csv"])
def test_a_mistyped_address_in_a_bucket_names_what_is_near_it(s3_storage, name):
    store = open_store(s3_storage)
    for key in (f"a/{number}" for number in range(3)):
        store.put(key, b"x")
    store.put(name.replace("f", "ph") + ("" if "." in name else "/cat/1.png"), b"x")
    near = name.replace("f", "ph")
    with pytest.raises(DatasetError, match=f"{name}, and there is nothing there. Beside it there are `{near}`"):
        everything_of(f"{s3_storage.uri}/{name}", s3_storage)


@pytest.mark.parametrize("name", ["photos", "photos.zip", "photos.parquet", "photos.csv"])
def test_a_missing_bucket_of_the_source_is_said_to_be_one(s3_storage, name):
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        everything_of(f"s3://no-such-bucket/{name}", s3_storage)
    assert "storage.uri" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"dataset.source names the bucket 'no bucket'"):
        everything_of("s3://no bucket/photos", s3_storage)


def test_a_public_bucket_is_read_without_credentials(s3_server, s3_storage, monkeypatch, tmp_path):
    bucket, _, prefix = s3_storage.uri.removeprefix("s3://").partition("/")
    for name, access in (("public.png", "public-read"), ("private.png", "private")):
        s3_client(s3_server).put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"x", ACL=access)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = open_store(s3_storage)
    assert store.read("public.png") == b"x"
    with pytest.raises(StorageError, match="HTTP 403") as caught:
        store.read("private.png")
    assert "not public, and no credentials were found" in caught.value.advice


def test_sources_travel_without_credentials(s3_storage, monkeypatch):
    for uri in (s3_storage.uri, f"{s3_storage.uri}/table.csv"):
        with open_source(DatasetConfig(source=uri), s3_storage) as source:
            pickled = pickle.dumps(source)
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
        assert pickle.loads(pickled) == source  # noqa: S301 - pickled just here


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip", "nowhere.csv"])
def test_a_source_that_is_not_there_says_so(tmp_path, folder_storage, name):
    with pytest.raises(DatasetError, match=f"{name}.*nothing there"):
        everything_of(tmp_path / name, folder_storage)


def test_a_file_of_another_kind_is_no_source(tmp_path, folder_storage):
    path = tmp_path / "photos.rar"
    path.touch()
    with pytest.raises(DatasetError, match="neither a folder nor a file of a known kind") as caught:
        everything_of(path, folder_storage)
    assert ".tar.gz" in caught.value.advice


def test_the_digits_are_png_files_of_ten_classes(folder_storage):
    entries, _ = everything_of("digits", folder_storage)
    assert len(entries) == 1797
    assert sorted(set(entries.values())) == [str(digit) for digit in range(10)]
    png = bytes_of("digits", folder_storage)["3/0003.png"]
    opened = Image.open(io.BytesIO(png))
    assert (opened.format, opened.size, opened.mode) == ("PNG", (IMAGE_SIZE, IMAGE_SIZE), "L")
    assert np.asarray(opened).max() == 255


def test_written_digits_are_the_same_source(tmp_path, folder_storage):
    assert write_digits(tmp_path) == 1797
    assert bytes_of(tmp_path, folder_storage) == bytes_of("digits", folder_storage)


def test_tfds_without_the_extra_says_how_to_get_it(folder_storage):
    if sys.modules.get("tensorflow_datasets"):
        pytest.skip("tensorflow-datasets is installed")
    with pytest.raises(DatasetError, match="tensorflow-datasets is not installed") as caught:
        everything_of("tfds:mnist", folder_storage)
    assert "transfer-on-ray[tfds]" in caught.value.advice


def test_images_that_tfds_marks_as_without_label_are_of_no_class(tmp_path):
    def write(split, labels):
        examples = ((b"%d" % number, label) for number, label in enumerate(labels))
        return list(write_split(examples, split=split, names=["cat", "a/b"], folder=tmp_path))

    assert [(each.key, each.reason) for each in write("train", [0, -1, 1])] == [("train-00000001", "no_label")]
    assert [(each.key, each.reason) for each in write("unlabelled", [-1, -1])] == [("unlabelled", "ignored")]
    assert write("empty", []) == []
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*-*"))
    assert written == ["a%2Fb/train-00000002", "cat/train-00000000"]


def test_splits_of_tfds_are_kept_under_their_usual_names_and_others_are_trained_on():
    kept = folders_of_splits(["train", "val", "extra"])
    assert kept == {"train": "train", "val": "validation", "extra": "train"}
    with pytest.raises(DatasetError, match="the splits there are test, validation: none to train on"):
        folders_of_splits(["validation", "test"])


def test_the_description_tells_where_images_came_from(tmp_path, folder_storage):
    write_classes(tmp_path, cat=1)
    config = config_of(tmp_path, folder_storage)
    with open_source(config.dataset, config.storage) as source:
        assert source.description == {"kind": "folder", "uri": str(tmp_path)}
