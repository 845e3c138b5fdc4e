"""What is written in Python becomes the configuration that a file would have been."""

import pytest
import yaml

import transfer
from tests.sourcing import write_classes
from transfer.api.configure import configured
from transfer.errors import ConfigError, DatasetError

DOCUMENT = {
    "name": "pets",
    "storage": "storage",
    "dataset": {"source": "photos"},
    "base": {"model": "MobileNetV2"},
    "phases": [{"unfreeze": 0}, {"unfreeze": 2}],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_get_the_configuration_that_init_writes(here):
    write_classes(here / "Some Pets", cat=3, dog=4)
    config = configured("Some Pets", model="ResNet50", storage="kept")
    assert (config.name, config.base.model, config.base.image_size) == ("some-pets", "ResNet50", 96)
    assert config.dataset.source == str(here / "Some Pets")
    assert config.storage.uri == str(here / "kept")
    assert config.phases[0].early_stopping is not None


@pytest.mark.parametrize("source", ["digits", "tfds:cats_vs_dogs", "photos.zip"])
def test_images_that_are_unpacked_first_need_no_look(here, source):
    assert configured(source).dataset.source in {source, str(here / source)}


def test_a_file_a_mapping_and_a_configuration_are_the_same(here):
    folder = here / "configs"
    folder.mkdir()
    (folder / "pets.yaml").write_text(yaml.safe_dump(DOCUMENT))
    of_file = configured("configs/pets.yaml")
    assert of_file.storage.uri == str(folder / "storage")
    assert configured(of_file) == of_file
    assert (
        configured(DOCUMENT, storage=folder / "storage", changes={"dataset.source": str(folder / "photos")}) == of_file
    )
    assert DOCUMENT["storage"] == "storage"


def test_phases_are_written_in_a_line():
    config = configured(DOCUMENT, unfreeze=[0, 1, "all"], epochs=[5, 2, 1])
    assert [(each.unfreeze, each.epochs, each.learning_rate) for each in config.phases] == [
        (0, 5, 1e-3),
        (1, 2, 1e-5),
        ("all", 1, 1e-5),
    ]
    assert [each.learning_rate for each in configured(DOCUMENT, learning_rate=0.1).phases] == [0.1, 0.1]
    with pytest.raises(ConfigError, match=r"epochs has 3 values; expected 1 or as many as there are phases: 2\."):
        configured(DOCUMENT, epochs=[1, 2, 3])


def test_changes_are_made_last_and_a_wrong_one_is_named():
    assert configured(DOCUMENT, {"phases.1.epochs": 9}, epochs=3).phases[1].epochs == 9
    with pytest.raises(ConfigError, match=r"changes\['phases.7.epochs'\]: `7` does not fit, a list of 2 stands there"):
        configured(DOCUMENT, {"phases.7.epochs": 9})
    with pytest.raises(ConfigError, match=r"training\.batchsize: unknown key; did you mean `batch_size`"):
        configured(DOCUMENT, {"training.batchsize": 9})


def test_images_are_looked_at_as_the_changes_say(here):
    write_classes(here / "photos", cat=3, dog=4)
    (here / "t.csv").write_text(
        "file,kind\n" + "".join(f"{each.relative_to(here)},{each.parent.name}\n" for each in here.glob("photos/*/*"))
    )
    columns = {"dataset.path_column": "file", "dataset.label_column": "kind"}
    assert configured("t.csv", columns).dataset.path_column == "file"
    with pytest.raises(DatasetError, match="has no column `path`"):
        configured("t.csv")
    with pytest.raises(ConfigError, match=r"path_colum: unknown key; did you mean `path_column`"):
        configured("t.csv", {"dataset.path_colum": "file"})


def test_what_is_no_source_is_named(here):
    with pytest.raises(ConfigError, match="The source is a int"):
        configured(42)
    with pytest.raises(DatasetError, match=r"dataset\.source is `flowers`, and there is nothing there"):
        configured("flowers")


def test_everything_that_is_exported_is_there_and_documented():
    for name in set(dir(transfer)) - {"__version__"}:
        assert getattr(transfer, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        transfer.trian  # noqa: B018
