"""Batch prediction: files, folders of parts, what a prediction says, and cached features that answer for images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.digits import digits_config, write_some_digits
from tests.reports import load_report
from transfer import jobs
from transfer.dataset.batches import decoded
from transfer.errors import AlreadyExistsError, ConfigError, DatasetError, StorageError
from transfer.registry import prediction_parts, prediction_work
from transfer.registry.head_answers import head_of
from transfer.registry.prediction_folder import PredictionFolder
from transfer.registry.versions import load_version
from transfer.storage import open_store
from transfer.training.shared_models import restore_model


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    source = write_some_digits(folder / "images")
    phases = [{"unfreeze": 0, "epochs": 4, "learning_rate": 1e-2}]
    config = digits_config(source, str(folder / "storage"), phases=phases)
    return config, jobs.train(config)


@pytest.fixture
def images(outcome, tmp_path):
    """Forty images, and two that are none."""
    folder = tmp_path / "images"
    shutil.copytree(Path(outcome[0].dataset.source, "3"), folder / "3")
    shutil.copytree(Path(outcome[0].dataset.source, "7"), folder / "7")
    (folder / "3/broken.png").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(prediction_parts, "FEWEST_ROWS", 8)


def rows_of(place):
    return pq.read_table(place).to_pylist()


def test_the_parts_of_a_folder_have_the_rows_of_one_file(outcome, images, tmp_path, small_parts):
    config, _ = outcome
    file, folder = tmp_path / "answers.parquet", tmp_path / "answers"
    in_file = jobs.predict(config, images=str(images), output=str(file))
    in_folder = jobs.predict(config, images=str(images), output=f"{folder}/")
    assert (in_folder.images, in_folder.errors) == (in_file.images, in_file.errors) == (50, 2)
    assert rows_of(folder) == rows_of(file)
    assert json.loads((folder / "_SUCCESS").read_text())["document"] == {"images": 50, "failed": 2, "parts": 7}
    assert len(list(folder.glob("part-*.parquet"))) == 7
    assert pq.read_schema(folder / "part-00006.parquet").metadata[b"version"] == b"1"
    with pytest.raises(AlreadyExistsError, match="are complete"):
        jobs.predict(config, images=str(images), output=str(folder))


def test_a_folder_that_was_begun_is_continued_by_the_same_command_and_by_no_other(
    outcome, images, tmp_path, small_parts, monkeypatch
):
    config, _ = outcome
    folder, write, written = tmp_path / "answers", PredictionFolder.write, []

    def write_three(self, part, table):
        if len(written) == 3:
            raise StorageError("The power went.")
        written.append(part)
        return write(self, part, table)

    def predict(**options):
        return jobs.predict(config, images=str(images), output=str(folder), **options)

    monkeypatch.setattr(PredictionFolder, "write", write_three)
    with pytest.raises(StorageError, match="The power went"):
        predict()
    assert not (folder / "_SUCCESS").exists()
    with pytest.raises(AlreadyExistsError, match=r"begun otherwise: top_k None \(asked for: 2\)"):
        predict(top_k=2)
    shutil.copy(images / "3/broken.png", images / "new.png")
    with pytest.raises(AlreadyExistsError, match=r"images 50 \(asked for: 51\), listing"):
        predict()
    (images / "new.png").unlink()

    def write_others(self, part, table):
        assert part not in written
        return write(self, part, table)

    monkeypatch.setattr(PredictionFolder, "write", write_others)
    done = predict()
    assert (done.images, done.errors) == (50, 2)
    keys = [row["key"] for row in rows_of(folder)]
    assert len(keys) == len(set(keys)) == 50


def test_a_folder_with_other_files_is_refused(outcome, images, tmp_path):
    config, _ = outcome
    with pytest.raises(AlreadyExistsError, match=r"has other files, such as 3/"):
        jobs.predict(config, images=str(images), output=f"{images}/")
    with pytest.raises(ConfigError, match="--overwrite replaces one file"):
        jobs.predict(config, images=str(images), output=f"{tmp_path}/new/", overwrite=True)


def test_the_most_probable_classes_and_the_features_of_the_base_are_columns(outcome, images, tmp_path):
    config, done = outcome
    jobs.predict(config, images=str(images), output=f"{tmp_path}/all.parquet")
    jobs.predict(config, images=str(images), output=f"{tmp_path}/some.parquet", top_k=3, embeddings=True)
    model, _ = restore_model(done.run, done.dataset)
    size = model.backbone.network.outputs[0].shape[-1]
    for everything, row in zip(rows_of(tmp_path / "all.parquet"), rows_of(tmp_path / "some.parquet"), strict=True):
        assert "probabilities" not in row
        assert (row["key"], row["error"]) == (everything["key"], everything["error"])
        if row["error"]:
            assert row["class_1"] is row["probability_3"] is row["embedding"] is None
            continue
        best = np.argsort(-np.array(everything["probabilities"]), kind="stable")[:3]
        assert [row[f"class_{place}"] for place in (1, 2, 3)] == [done.dataset.classes[index] for index in best]
        assert row["probability_1"] == pytest.approx(everything["confidence"], abs=1e-5)
        assert row["class_name"] == row["class_1"]
        pixels = decoded((images / row["key"]).read_bytes(), image_input=model.backbone.image_input)
        expected = model.backbone.network(model.backbone.preprocess(pixels[None]), training=False).numpy()[0]
        assert len(row["embedding"]) == size
        np.testing.assert_allclose(np.array(row["embedding"], np.float32), expected, atol=1e-2)
    with pytest.raises(ConfigError, match=r"--top-k is 11, and version 1 of digits has 10 classes"):
        jobs.predict(config, images=str(images), output=f"{tmp_path}/a.jsonl", top_k=11)
    with pytest.raises(ConfigError, match=r"--embeddings has lists of numbers, and --output is .*a.csv"):
        jobs.predict(config, images=str(images), output=f"{tmp_path}/a.csv", embeddings=True)


def test_cached_features_answer_for_the_images_of_a_dataset_version_as_the_images_do(outcome, tmp_path, monkeypatch):
    config, done = outcome
    # Images are read to check the head, and no shard as a whole.
    monkeypatch.setattr(prediction_work, "read_rows", None)
    cached = jobs.predict(config, dataset="digits@1", output=f"{tmp_path}/cached/", embeddings=True)
    assert cached.images == cached.from_features == sum(shard.rows for shard in done.dataset.shards)
    # Without them the images answer, and here in parts of at most 20 rows of 10 classes.
    monkeypatch.undo()
    monkeypatch.setattr(prediction_parts, "MOST_BYTES", 20 * 10 * 4)
    storage = tmp_path / "storage"
    shutil.copytree(config.storage.uri, storage)
    shutil.rmtree(storage / "features")
    elsewhere = config.model_copy(update={"storage": config.storage.model_copy(update={"uri": str(storage)})})
    computed = jobs.predict(elsewhere, dataset="digits", output=f"{tmp_path}/computed/", embeddings=True)
    assert (computed.images, computed.from_features) == (cached.images, 0)
    for one, other in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "computed"), strict=True):
        assert (one["key"], one["class_name"]) == (other["key"], other["class_name"])
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-2)

    assert {pq.read_metadata(part).num_rows for part in Path(tmp_path, "computed").glob("part-*")} > {20}
    of_split = jobs.predict(config, dataset="digits", split="test", output=f"{tmp_path}/test.parquet")
    assert of_split.from_features == of_split.images
    _, predictions = load_report(done.run, 1)
    assert [row["key"] for row in rows_of(tmp_path / "test.parquet")] == predictions.keys
    assert of_split.images == len(predictions.keys)


def test_features_that_are_damaged_or_gone_stay_as_they_are_and_the_images_are_predicted(outcome, tmp_path, caplog):
    config, done = outcome
    storage = tmp_path / "storage"
    shutil.copytree(config.storage.uri, storage)
    first, second, *others = done.dataset.shards
    (damaged,) = storage.glob(f"features/*/{first.sha256}-*.arrow")
    (gone,) = storage.glob(f"features/*/{second.sha256}-*.arrow")
    damaged.chmod(0o644)
    damaged.write_bytes(b"no features")
    gone.unlink()
    before = sorted(storage.rglob("features/**/*"))
    elsewhere = config.model_copy(update={"storage": config.storage.model_copy(update={"uri": str(storage)})})
    computed = jobs.predict(elsewhere, dataset="digits", output=f"{tmp_path}/computed/")
    assert computed.from_features == sum(shard.rows for shard in others) > 0
    assert sorted(storage.rglob("features/**/*")) == before
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.rpartition(". ")[2] for message in warned] == ["Its images are predicted."]


def test_a_head_that_was_not_exported_answers_nothing(outcome):
    config, done = outcome
    store = open_store(config.storage)
    version = load_version(store, "digits", None)
    assert head_of(config, store, version).model.classes == done.dataset.classes
    for field in ("weights", "base"):
        other = getattr(version.provenance, field).model_copy(update={"sha256": "0" * 64})
        provenance = version.provenance.model_copy(update={field: other})
        assert head_of(config, store, version.model_copy(update={"provenance": provenance})) is None


def test_a_dataset_version_that_is_not_there_is_named(outcome, tmp_path):
    config, _ = outcome
    with pytest.raises(DatasetError, match="There is no version 9 of the dataset `digits`"):
        jobs.predict(config, dataset="digits@9", output=f"{tmp_path}/a/")
    with pytest.raises(ConfigError, match="its split `night`"):
        jobs.predict(config, dataset="digits", split="night", output=f"{tmp_path}/a/")
    with pytest.raises(ConfigError, match="by --images, or by --dataset"):
        jobs.predict(config, images="a.png", dataset="digits")


def test_a_table_names_images_by_its_column_of_paths(outcome, images):
    config, _ = outcome
    (first, second) = sorted((images / "7").iterdir())[:2]
    table = images / "some.csv"
    table.write_text(f"who,path\nanna,7/{first.name}\nbert,\ncarl,{second}\ndora,7/gone.png\n")
    rows = jobs.predict(config, images=str(table)).predictions
    assert [row["key"] for row in rows] == [f"7/{first.name}", "row 2", str(second), "7/gone.png"]
    assert [(row["error"] or "").partition(":")[0] for row in rows] == ["", "no_path", "", "missing"]
    table.write_text("who,file\nanna,7/1.png\n")
    with pytest.raises(DatasetError, match="no column `path`"):
        jobs.predict(config, images=str(table))
