"""`transfer init`: the configuration that it writes, and the folders that it refuses."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.images import encode, picture
from tests.sourcing import write_classes
from transfer.api.configure import configured
from transfer.config import PhaseConfig, load_config
from transfer.errors import ConfigError, DatasetError
from transfer.starter import write_starter


@pytest.fixture
def photos(tmp_path):
    return write_classes(tmp_path / "My photos #1", cat=3, dog=4)


def test_what_is_written_loads_and_fits_the_folder(photos, tmp_path, monkeypatch):
    output = tmp_path / "config.yaml"
    starter = write_starter(str(photos), output)
    # It may be used from anywhere.
    monkeypatch.chdir("/")
    config = load_config(output)
    assert (config.name, config.dataset.source) == ("my-photos-1", str(photos))
    assert config.storage.uri == str(tmp_path / "storage")
    assert (starter.images, starter.classes) == (7, 2)
    assert "name: my-photos-1  # of the job and of the model that it publishes, after the folder's name" in starter.text
    # Images of 16 pixels, and few of them.
    assert config.base.image_size == 96
    assert [phase.unfreeze for phase in config.phases] == [0]
    assert config.augmentation.views == 4
    assert config.augmentation.flip == "none"
    text = output.read_text()
    assert "#   cat 3\n#   dog 4\n" in text
    assert "about 1 images" in text


def test_given_splits_are_counted_and_the_other_is_drawn_from_what_is_left(tmp_path):
    for number, (split, count) in enumerate({"train": 10, "val": 2}.items()):
        write_classes(tmp_path / "photos" / split, first_seed=100 * number, cat=count, dog=count)
    text = write_starter(str(tmp_path / "photos"), tmp_path / "config.yaml").text
    assert "validation: 0.2  # kept for choosing, 4 images that are given: this share is not used" in text
    assert "test: 0.2  # kept for the report, about 4 images" in text


def test_columns_for_splits_and_groups_stand_there_to_be_taken(photos, tmp_path):
    names = [path.relative_to(tmp_path) for path in sorted(photos.rglob("*.png"))]
    rows = "".join(f"{name},{name.parent.name},train,{number}\n" for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text(f"path,label,split,patient\n{rows}")
    write_starter(str(tmp_path / "t.csv"), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert load_config(tmp_path / "config.yaml").dataset.split_column is None
    for line in ("split_column: split", "group_column: patient"):
        assert f"\n  # {line}  # the table has it; without it, " in text
        text = text.replace(f"# {line}", line)
    (tmp_path / "config.yaml").write_text(text)
    dataset = load_config(tmp_path / "config.yaml").dataset
    assert (dataset.split_column, dataset.group_column) == ("split", "patient")


def test_a_table_with_paths_and_images_says_which_key_takes_the_images(tmp_path):
    table = pa.table({"path": ["1.png", "2.png"], "image": [encode(picture(), "PNG")] * 2, "label": ["cat", "dog"]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"none is an image; the first of them is 1\.png") as refused:
        write_starter(str(tmp_path / "t.parquet"), tmp_path / "config.yaml")
    assert "path_column: image" in refused.value.advice
    assert "class folders" not in refused.value.advice


@pytest.mark.parametrize("source", ["photos.zip", "digits"])
def test_a_source_that_cannot_be_looked_into_gets_the_usual_settings(photos, tmp_path, source):
    shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    photos_source = str(tmp_path / source) if source.endswith(".zip") else source
    starter = write_starter(photos_source, tmp_path / "config.yaml")
    assert (starter.images, starter.classes) == (None, None)
    config = load_config(tmp_path / "config.yaml")
    assert (config.dataset.source, config.base.model) == (photos_source, "MobileNetV2")
    assert config.phases == [PhaseConfig()]
    # What Python makes of it is the same.
    assert configured(photos_source, storage=tmp_path / "storage") == config


@pytest.mark.parametrize(("name", "said"), [("nowhere.zip", "there is nothing at"), ("text.zip", "is refused")])
def test_an_archive_that_is_none_gets_no_configuration(tmp_path, name, said):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DatasetError, match=said):
        write_starter(str(tmp_path / name), tmp_path / "config.yaml")
    assert not (tmp_path / "config.yaml").exists()


def test_more_images_train_blocks_too_and_larger_ones_stay_larger(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        (folder / label / "0.jpg").write_bytes(encode(picture(640, 480), "JPEG"))
        for number in range(1, 500):
            os.link(folder / label / "0.jpg", folder / label / f"{number}.jpg")
    write_starter(str(folder), tmp_path / "some.yaml")
    config = load_config(tmp_path / "some.yaml")
    assert config.base.image_size == 224
    assert [phase.unfreeze for phase in config.phases] == [0, 2]
    assert not config.augmentation.is_active
    # A long listing is not read to its end, and says so.
    monkeypatch.setattr("transfer.starter.MOST_LISTED", 700)
    write_starter(str(folder), tmp_path / "part.yaml")
    assert "2 classes or more, 700 files or more" in (tmp_path / "part.yaml").read_text()
    # What lies behind its end may be another class.
    monkeypatch.setattr("transfer.starter.MOST_LISTED", 400)
    write_starter(str(folder), tmp_path / "first.yaml")
    assert "1 classes or more, 400 files or more" in (tmp_path / "first.yaml").read_text()


def test_nothing_is_written_over_and_nothing_among_the_images(photos, tmp_path):
    output = tmp_path / "config.yaml"
    output.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_starter(str(photos), output)
    assert output.read_text() == "mine"
    with pytest.raises(ConfigError, match="would lie in the folder of the images"):
        write_starter(str(photos), photos / "config.yaml")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_starter(str(photos), tmp_path / "nowhere/config.yaml")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "no class folders with files .* found: nothing"),
        (["one.png", "two.png"], "no class folders with files .* found: `one.png`, `two.png`"),
        (["cat/one.png"], "only one class .* `cat`"),
        (["train/one.png", "val/two.png"], "are `train`, `val`: splits, and no classes"),
        (["a/notes.txt", "b/notes.txt"], "none is an image; the first of them is a/notes.txt"),
    ],
)
def test_a_folder_without_class_folders_of_images_is_refused_with_what_is_there(tmp_path, files, found):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"text" if name.endswith(".txt") else encode(picture(), "PNG"))
    with pytest.raises(DatasetError, match=found):
        write_starter(str(folder), tmp_path / "config.yaml")
    assert not (tmp_path / "config.yaml").exists()


def test_a_prefix_in_a_bucket_is_looked_at_too(s3_storage, tmp_path, monkeypatch):
    from transfer.storage import open_store

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_storage.endpoint_url)
    for name in ("cat/1.png", "dog/2.png"):
        open_store(s3_storage).put(f"photos/{name}", encode(picture(), "PNG"))
    write_starter(f"{s3_storage.uri}/photos", tmp_path / "config.yaml")
    config = load_config(tmp_path / "config.yaml")
    assert (config.name, config.dataset.source) == ("photos", f"{s3_storage.uri}/photos")


def test_the_command_writes_what_config_check_passes(transfer, photos, tmp_path):
    from transfer.demo import BASE_PATH

    # So many that no split is empty.
    write_classes(photos, first_seed=100, cat=20, dog=20)
    output = tmp_path / "config.yaml"
    done = transfer("init", photos, "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["next"]) == ("my-photos-1", f"transfer config check {output}")
    # The demo's base instead of weights that only a network has.
    checked = transfer(
        "config", "check", output, "--json", "--set", f"base.model={BASE_PATH}", "--set", "base.image_size=32"
    )
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["dataset"]["classes"] == {"cat": 23, "dog": 24}
