"""What predictions are made of and written to, without a model."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.digits import digits_config
from tests.published import publish_some
from tests.sourcing import write_file
from transfer.config.reference import render
from transfer.dataset.manifest import Reject
from transfer.errors import AlreadyExistsError, ConfigError, DatasetError, RegistryError
from transfer.registry.images import find_images
from transfer.registry.prediction_file import (
    Columns,
    as_json,
    check_file,
    deliver,
    is_folder,
    predictions_file,
    predictions_table,
)
from transfer.storage import open_store

CLASSES = ["a", "b"]
ANSWERED = [
    ("x/1.png", (np.array([0.1, 0.9], np.float32), np.array([0.1, 2.5, 70.0], np.float32))),
    ("2.png", Reject("2.png", "empty", '"so"\nto say')),
]


def tables(version, columns=Columns()):  # noqa: B008 - it is frozen
    """The predictions, one table an image."""
    size = 3 if columns.embeddings else None
    return [predictions_table([each], version, columns, embedding_size=size) for each in ANSWERED]


def written(version, path, columns=Columns()):  # noqa: B008
    with predictions_file(path, version.classes) as write:
        for table in tables(version, columns):
            write(table)
    return path


@pytest.fixture
def version(folder_storage):
    (version,) = publish_some(open_store(folder_storage), 1)
    return version


def test_a_parquet_file_has_a_row_an_image_and_the_classes_in_its_metadata(version, tmp_path):
    table = pq.read_table(written(version, tmp_path / "answers.parquet"))
    first, second = table.to_pylist()
    assert (first["key"], first["class_name"], first["class_index"], first["error"]) == ("x/1.png", "b", 1, None)
    assert first["confidence"] == max(first["probabilities"])
    assert (second["class_name"], second["confidence"], second["error"]) == (None, None, 'empty: "so"\nto say')
    assert json.loads(table.schema.metadata[b"classes"]) == CLASSES
    assert (table.schema.metadata[b"model"], table.schema.metadata[b"version"]) == (b"flowers", b"1")


def test_a_csv_file_has_a_column_for_each_class(version, tmp_path):
    with written(version, tmp_path / "answers.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "key": "x/1.png",
        "class_name": "b",
        "class_index": "1",
        "confidence": "0.9",
        "error": "",
        "probability_a": "0.1",
        "probability_b": "0.9",
    }
    assert (second["error"], second["confidence"], second["probability_b"]) == ('empty: "so"\nto say', "", "")


def test_a_jsonl_file_has_an_object_a_line_as_the_answer_of_the_command_has(version, tmp_path):
    lines = written(version, tmp_path / "answers.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert [[first], [second]] == [as_json(table, CLASSES) for table in tables(version)]
    assert (first["confidence"], first["probabilities"]) == (0.9, {"a": 0.1, "b": 0.9})
    assert second["probabilities"] is None


def test_the_most_probable_classes_and_embeddings_are_columns_of_every_format_that_has_lists(version, tmp_path):
    columns = Columns(top_k=2, embeddings=True)
    first, second = pq.read_table(written(version, tmp_path / "answers.parquet", columns)).to_pylist()
    assert (first["class_1"], first["class_2"], first["confidence"]) == ("b", "a", first["probability_1"])
    assert "probabilities" not in first
    assert (second["class_1"], second["probability_2"], second["embedding"]) == (None, None, None)
    lines = written(version, tmp_path / "answers.jsonl", columns).read_text().splitlines()
    assert json.loads(lines[0])["embedding"] == [0.1, 2.5, 70.0]
    with written(version, tmp_path / "answers.csv", Columns(top_k=2)).open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["class_2"], first["probability_2"], second["class_1"]) == ("a", "0.1", "")


def test_a_feature_beyond_half_precision_is_an_error_that_names_the_image(version):
    answered = [("x/1.png", (np.array([0.1, 0.9], np.float32), np.array([7e4], np.float32)))]
    with pytest.raises(RegistryError, match=r"A feature of x/1.png is 70000"):
        predictions_table(answered, version, Columns(embeddings=True), embedding_size=1)


@pytest.mark.parametrize("output", ["answers/", "s3://bucket/answers/", "s3://bucket.eu/answers", "of.today/answers"])
def test_an_output_without_a_suffix_is_a_folder(output):
    assert is_folder(output)
    assert not is_folder(f"{output.rstrip('/')}.parquet")


def test_an_output_is_refused_before_anything_else_unless_it_may_be_overwritten(transfer, tmp_path, folder_storage):
    # There is no model: what is refused here is refused before one is looked for.
    config, output = tmp_path / "config.yaml", tmp_path / "answers.csv"
    config.write_text(render(digits_config(tmp_path / "images", folder_storage.uri)))
    output.write_text("of yesterday")
    done = transfer("predict", config, "--images", tmp_path, "--output", output)
    assert done.returncode == 14
    assert f"The output {output} exists already.\n  Replace it with --overwrite" in done.stderr
    done = transfer("predict", config, "--images", tmp_path, "--output", tmp_path / "answers.xlsx")
    assert done.returncode == 2
    assert "answers.xlsx, and its suffix" in done.stderr
    assert ".parquet, .csv or .jsonl" in done.stderr
    done = transfer("predict", config, "--images", tmp_path, "--output", output, "--overwrite")
    assert done.returncode == 7
    assert output.read_text() == "of yesterday"


def test_an_output_is_replaced_only_where_that_was_said(storage, tmp_path):
    file, output = tmp_path / "predictions.csv", f"{storage.uri}/answers.csv"
    for content, overwrite in ((b"old", False), (b"new", True)):
        file.write_bytes(content)
        check_file(output, storage, overwrite=overwrite)
        deliver(file, output, storage, overwrite=overwrite)
    assert open_store(storage).read("answers.csv") == b"new"
    file.write_bytes(b"other")
    for refuse in (
        lambda: check_file(output, storage, overwrite=False),
        lambda: deliver(file, output, storage, overwrite=False),
    ):
        with pytest.raises(AlreadyExistsError, match=r"answers.csv exists already. Replace it with --overwrite"):
            refuse()
    assert open_store(storage).read("answers.csv") == b"new"


def test_a_relative_output_is_one_of_the_current_folder(folder_storage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("{}")
    deliver(tmp_path / "predictions.jsonl", "answers.jsonl", folder_storage, overwrite=False)
    assert (tmp_path / "answers.jsonl").read_text() == "{}"
    with pytest.raises(ConfigError, match=r"answers.xlsx, and its suffix"):
        check_file("answers.xlsx", folder_storage, overwrite=True)


def test_images_are_found_in_folders_and_by_themselves(storage):
    store = open_store(storage)
    for name in ("cats/1.png", "cats/deep/2.png", "dogs/1.png"):
        store.put(name, name.encode())
    cats, dogs, one = (f"{storage.uri}/{name}" for name in ("cats", "dogs/", "dogs/1.png"))

    def keys(*places):
        return [image.key for image in find_images(places, storage)]

    assert keys(cats) == ["1.png", "deep/2.png"]
    assert keys(one) == [one]
    assert keys(cats, dogs) == [f"{cats}/1.png", f"{cats}/deep/2.png", f"{dogs}1.png"]
    assert keys(one, cats, dogs, one) == [one, f"{cats}/1.png", f"{cats}/deep/2.png"], "each image once"
    assert [image.read(max_size_bytes=99) for image in find_images([one], storage)] == [b"dogs/1.png"]
    with pytest.raises(DatasetError, match=r"There are no files in .*/birds"):
        find_images([cats, f"{storage.uri}/birds"], storage)
    birds, *others = find_images([f"{storage.uri}/birds", cats], storage, must_exist=False)
    assert (birds.key, birds.read(max_size_bytes=99).reason) == (f"{storage.uri}/birds", "missing")
    assert len(others) == 2


def test_what_cannot_be_read_is_an_image_that_is_refused_and_stops_no_other(folder_storage, tmp_path):
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for name in ("1.png", "two\nlines.png", os.fsdecode(b"latin\xe9.png"), ".hidden.png", "1.json", "gone.png"):
        write_file(folder / name, b"x")
    write_file(elsewhere / "2.png", b"linked")
    (folder / "link").symlink_to(elsewhere)
    (folder / "back").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe.png")
    found = find_images([str(folder)], folder_storage)
    (folder / "gone.png").unlink()
    read = {image.key: image.read(max_size_bytes=9) for image in found}
    bad = {key: data.reason for key, data in read.items() if isinstance(data, Reject)}
    assert bad == {"circle": "unreadable", "pipe.png": "unreadable", "gone.png": "missing"}
    good = {key: data for key, data in read.items() if key not in bad}
    assert good == {"1.png": b"x", "two%0Alines.png": b"x", "latin%E9.png": b"x", "link/2.png": b"linked"}
    assert find_images([str(folder / "pipe.png")], folder_storage)[0].read(max_size_bytes=9).reason == "unreadable"


def test_a_list_names_images_relative_to_itself(folder_storage, tmp_path):
    write_file(tmp_path / "images" / "cats" / "1.png", b"one")
    write_file(tmp_path / "images" / "2.png", b"two")
    names = tmp_path / "images" / "today.txt"
    names.write_text(f"2.png\n\ncats\n{tmp_path}/images/2.png\nnothing.png\n")
    found = find_images([str(names)], folder_storage)
    read = {image.key: image.read(max_size_bytes=9) for image in found}
    missing = read.pop("nothing.png")
    assert missing.reason == "missing"
    assert read == {"2.png": b"two", f"{tmp_path}/images/cats/1.png": b"one"}


def test_images_of_the_web_are_refused_without_the_secrets_of_their_address(folder_storage):
    with pytest.raises(DatasetError, match="at https://, which is not read") as caught:
        find_images(["https://user:secret@example.org/1.png"], folder_storage)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, folder_storage):
    write_file(tmp_path / "large.png", b"0123456789")
    (image,) = find_images([str(tmp_path / "large.png")], folder_storage)
    (of_folder,) = find_images([str(tmp_path)], folder_storage)
    (tmp_path / "large.png").unlink()
    assert of_folder.read(max_size_bytes=9) == Reject(of_folder.key, "too_large_file", "10 bytes")
    # Of one that is named itself nobody asked the size.
    assert image.read(max_size_bytes=9).reason == "missing"
