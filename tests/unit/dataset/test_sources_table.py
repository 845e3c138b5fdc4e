"""Tables of paths and labels."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sourcing import bytes_of, config_of, everything_of, image, write_classes
from transfer.config import DatasetConfig
from transfer.dataset.ingest import ingest
from transfer.dataset.sources import open_source
from transfer.dataset.sources.base import key_of
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


def test_a_parquet_table_is_known_whatever_the_case_of_its_name(images, folder_storage):
    table = pa.table({"path": ["cat/00000.png"], "label": ["cat"]})
    pq.write_table(table, images / "T.PARQUET")
    assert bytes_of(images / "T.PARQUET", folder_storage) == {"cat/00000.png": image(0)}


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_table_with_another_separator_is_read(images, folder_storage, delimiter):
    rows = [("id", "path", "label"), ("1,5", "cat/00000.png", "cat, small")]
    table = csv_of(images, "\n".join(delimiter.join(row) for row in rows))
    assert everything_of(table, folder_storage)[0] == {"cat/00000.png": "cat, small"}


def test_paths_as_windows_and_browsers_write_them_are_read(images, folder_storage):
    spaced = images / "cat" / "a b.png"
    spaced.write_bytes(b"spaced")
    (images / "dog" / "a\\b").write_bytes(b"named so")
    address = spaced.as_uri()
    table = csv_of(images, f"path,label\ncat\\00000.png,cat\n{address},cat\ndog\\a\\b,dog\ndog/a\\b,dog\n")
    found = bytes_of(table, folder_storage)
    assert found["cat\\00000.png"] == image(0)
    assert found[key_of(address)] == b"spaced"
    assert found["dog\\a\\b"].reason == "missing"
    assert found["dog/a\\b"] == b"named so"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("https://example.org/{}.jpg", "a web address, and tables name files"),
        ("images/{}", "there is no such file"),
        ("C:\\images\\{}.jpg", "there is no such file"),
    ],
)
def test_a_table_of_which_no_file_can_be_read_is_refused_in_one_sentence(tmp_path, folder_storage, path, found):
    table = csv_of(tmp_path, "file,label\n" + "".join(f"{path.format(n)},{'cd'[n % 2]}\n" for n in range(8)))
    config = config_of(table, folder_storage, path_column="file", max_reject_share=0.99)
    with pytest.raises(DatasetError) as caught:
        ingest(config, open_store(folder_storage))
    first = ", ".join(f"`{path.format(n)}`" for n in range(3))
    assert f"None of the 8 files that the column `file` of {table} names could be read, such as {first}: {found}" in (
        caught.value.message
    )


def test_a_table_with_paths_and_images_says_so_where_no_path_can_be_read(tmp_path, folder_storage, caplog, capsys):
    columns = {"path": [f"{n}.png" for n in range(8)], "image": [image(n) for n in range(8)], "label": ["c", "d"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    config = config_of(tmp_path / "t.parquet", folder_storage)
    with pytest.raises(DatasetError, match=r"images in the column `image`: `dataset\.path_column: image`"):
        ingest(config, open_store(folder_storage))
    assert "has images in `image`, which is not used; dataset.path_column would." in caplog.text
    # Not one of them turned out to be an image.
    assert "check: 8/8 files, " in capsys.readouterr().err
    caplog.clear()
    assert bytes_of(tmp_path / "t.parquet", folder_storage, path_column="image")["row-00000003"] == image(3)
    assert not caplog.text


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HUGGING_FACE = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def embedded(rows, *, label=0, names=HUGGING_FACE, column="image"):
    """A table as Hugging Face writes it, of rows of path and bytes."""
    images = pa.array([{"path": path, "bytes": data} for path, data in rows], IMAGE)
    labels = label if isinstance(label, list) else [label] * len(rows)
    table = pa.table({column: images, "label": pa.array(labels, pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps(names)})


def test_a_parquet_table_can_hold_the_images_and_the_names_of_its_classes(tmp_path, folder_storage):
    rows = [("a/1.png", b"one"), ("a/2.png", b"two"), ("3.png", b"three"), ("4.png", None)]
    pq.write_table(embedded(rows, label=[0, 1, -1, 0]), tmp_path / "t.parquet")
    entries, rejects = everything_of(tmp_path / "t.parquet", folder_storage)
    assert entries == {"a/1.png": "cat", "a/2.png": "dog"}
    assert rejects == {"3.png": "no_label", "4.png": "unreadable"}
    assert bytes_of(tmp_path / "t.parquet", folder_storage) == {"a/1.png": b"one", "a/2.png": b"two"}
    with pytest.raises(DatasetError, match=r"exceed dataset.source_max_size_bytes, 5 bytes"):
        everything_of(tmp_path / "t.parquet", folder_storage, source_max_size_bytes=5)


def test_images_without_a_path_of_their_own_are_named_by_their_rows(tmp_path, folder_storage):
    for rows in ([("1.png", b"one"), ("1.png", b"two")], [(None, b"one"), ("2.png", b"two")]):
        pq.write_table(embedded(rows), tmp_path / "t.parquet")
        assert bytes_of(tmp_path / "t.parquet", folder_storage) == {"row-00000000": b"one", "row-00000001": b"two"}
    pq.write_table(pa.table({"picture": [b"one"], "label": ["cat"]}), tmp_path / "t.parquet")
    assert bytes_of(tmp_path / "t.parquet", folder_storage) == {"row-00000000": b"one"}


def test_splits_and_groups_are_read_beside_the_images(tmp_path, folder_storage, caplog):
    table = embedded([("1.png", b"one"), ("2.png", b"two"), ("3.png", b"three")])
    table = table.append_column("fold", pa.array(["train", "val", None])).append_column("patient", pa.array([7, 7, 8]))
    pq.write_table(table, tmp_path / "t.parquet")
    config = config_of(tmp_path / "t.parquet", folder_storage, split_column="fold", group_column="patient")
    with open_source(config.dataset, config.storage) as source:
        found = {entry.key: (entry.split, entry.group) for entry in source.entries()}
    assert found == {"1.png": ("train", "7"), "2.png": ("validation", "7"), "3.png": (None, "8")}
    everything_of(tmp_path / "t.parquet", folder_storage)
    assert "`patient`, which is not used" in caplog.text
    with pytest.raises(DatasetError, match="no column `side`; its columns are"):
        everything_of(tmp_path / "t.parquet", folder_storage, split_column="side")
    pq.write_table(table.set_column(2, "fold", pa.array(["train", "tset", ""])), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"has `tset` in row 2 of the column `fold`.*did you mean `test`"):
        everything_of(tmp_path / "t.parquet", folder_storage, split_column="fold")


def test_two_columns_of_images_need_a_choice(tmp_path, folder_storage):
    table = embedded([("1.png", b"one")]).append_column("mask", pa.array([b"mask"]))
    pq.write_table(table, tmp_path / "t.parquet")
    assert bytes_of(tmp_path / "t.parquet", folder_storage, path_column="mask") == {"row-00000000": b"mask"}
    with pytest.raises(DatasetError, match="no column `path`; its columns are image, label, mask"):
        everything_of(tmp_path / "t.parquet", folder_storage)


def test_a_folder_or_prefix_of_parquet_parts_is_one_table(storage, tmp_path):
    store, uri = open_store(storage), f"{storage.uri}/data"
    for name, label, row in (("train-0.parquet", 1, ("2.png", b"two")), ("test-0.parquet", 0, ("1.png", b"one"))):
        pq.write_table(embedded([row], label=label), tmp_path / name)
        store.put(f"data/{name}", tmp_path / name)
    store.put("data/README.md", b"a card")
    assert everything_of(uri, storage)[0] == {"1.png": "cat", "2.png": "dog"}
    assert bytes_of(uri, storage) == {"1.png": b"one", "2.png": b"two"}
    store.put("data/cat/1.png", b"x")
    assert everything_of(uri, storage)[0] == {"cat/1.png": "cat"}, "class folders, and files beside them"


def test_names_of_classes_count_for_tables_of_paths_too(images, folder_storage):
    table = pa.table({"path": ["cat/00000.png", "dog/00001.png"], "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(HUGGING_FACE)}), images / "t.parquet")
    assert set(everything_of(images / "t.parquet", folder_storage)[0].values()) == {"cat", "dog"}


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
    with pytest.raises(DatasetError, match="cannot be read") as caught:
        everything_of(tmp_path / name, folder_storage)
    assert not caught.value.message.endswith("..")


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
