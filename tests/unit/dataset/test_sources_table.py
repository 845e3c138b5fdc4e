"""Tables of paths and labels."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sourcing import bytes_of, everything_of, image, write_classes
from transfer.config import DatasetConfig
from transfer.dataset.sources import open_source
from transfer.errors import DatasetError
from transfer.storage import open_store


@pytest.fixture
def images(tmp_path):
    return write_classes(tmp_path / "images", cat=1, dog=1)


def csv_of(images, text):
    path = images / "table.csv"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_table_or_absolute(images, folder_storage):
    absolute = images / "dog" / "00001.png"
    table = csv_of(images, f"path,label\ncat/00000.png,Cat\n{absolute},Dog\n")
    entries, rejects = everything_of(table, folder_storage)
    assert entries == {"cat/00000.png": "Cat", str(absolute): "Dog"}
    assert rejects == {}
    assert list(bytes_of(table, folder_storage).values()) == [image(0), image(1)]


def test_a_row_whose_file_is_missing_is_refused_when_it_is_read(images, folder_storage):
    table = csv_of(images, "path,label\ncat/nothing.png,cat\n")
    assert bytes_of(table, folder_storage)["cat/nothing.png"].reason == "missing"


def test_rows_without_path_or_label_are_refused(images, folder_storage):
    table = csv_of(images, 'path,label\ncat/00000.png,\n,dog\ndog/00001.png,"  "\n')
    entries, rejects = everything_of(table, folder_storage)
    assert entries == {}
    assert rejects == {"cat/00000.png": "no_label", "row 2": "no_path", "dog/00001.png": "no_label"}


def test_labels_stay_text(images, folder_storage):
    table = csv_of(images, "path,label\na,007\nb,NA\nc,1e3\nd, spaced \ne,caf\u0065\u0301\n")
    assert list(everything_of(table, folder_storage)[0].values()) == ["007", "NA", "1e3", "spaced", "café"]


def test_quoted_names_may_hold_commas_and_line_ends(images, folder_storage):
    table = csv_of(images, 'label,other,path\ncat,1,"a,b\nc.png"\n')
    assert everything_of(table, folder_storage)[0] == {"a,b%0Ac.png": "cat"}


@pytest.mark.parametrize(
    "labels",
    [pa.array([0, 1]), pa.array(["0", "1"]).dictionary_encode(), pa.array(["0", "1"], pa.large_string())],
    ids=["integers", "dictionary", "large_string"],
)
def test_a_parquet_table_with_columns_of_other_names(images, folder_storage, labels):
    path = images / "table.parquet"
    pq.write_table(pa.table({"file": ["cat/00000.png", "dog/00001.png"], "extra": [1, 2], "kind": labels}), path)
    options = {"path_column": "file", "label_column": "kind"}
    assert everything_of(path, folder_storage, **options)[0] == {"cat/00000.png": "0", "dog/00001.png": "1"}
    assert bytes_of(path, folder_storage, **options)["dog/00001.png"] == image(1)


def test_a_missing_column_names_the_columns_found(images, folder_storage):
    table = csv_of(images, "file,class\na,b\n")
    with pytest.raises(DatasetError, match="no column `path`; its columns are file, class") as caught:
        everything_of(table, folder_storage)
    assert "dataset.path_column" in caught.value.advice


@pytest.mark.parametrize(
    ("name", "content"), [("t.csv", b""), ("t.csv", b"path,label\n\xff,\xfe\n"), ("t.parquet", b"no")]
)
def test_a_table_that_is_none_says_so(tmp_path, folder_storage, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read"):
        everything_of(tmp_path / name, folder_storage)


def test_a_table_in_a_bucket_names_objects_beside_it_and_anywhere(s3_storage, tmp_path):
    store = open_store(s3_storage)
    store.put("a/images/1.png", b"one")
    store.put("b/2.png", b"two")
    local = tmp_path / "3.png"
    local.touch()
    table = f"path,label\nimages/1.png,cat\n../b/2.png,dog\n{s3_storage.uri}/b/2.png,dog\n{local},dog\nnothing,dog\n"
    store.put("a/table.csv", table.encode())
    found = bytes_of(f"{s3_storage.uri}/a/table.csv", s3_storage)
    *texts, on_disk, missing = found.values()
    assert texts == [b"one", b"two", b"two"]
    assert on_disk.reason == "unreadable"
    assert missing.reason == "missing"


def test_a_local_table_may_name_objects_and_only_local_bytes_travel(images, s3_storage):
    open_store(s3_storage).put("1.png", b"one")
    table = csv_of(images, f"path,label\n{s3_storage.uri}/1.png,cat\ncat/00000.png,cat\n")
    assert list(bytes_of(table, s3_storage).values()) == [b"one", image(0)]
    with open_source(DatasetConfig(source=str(table)), s3_storage) as source:
        assert [source.is_local(item.key) for item in source.entries()] == [False, True]


def test_a_table_that_is_not_in_the_bucket_says_so(s3_storage):
    with pytest.raises(DatasetError, match="nothing there"):
        everything_of(f"{s3_storage.uri}/table.parquet", s3_storage)
