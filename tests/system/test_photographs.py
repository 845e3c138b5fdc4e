"""Real photographs, the whole way: from a folder of them to a published model that answers.

They are no part of this project: `tests/images.py` says where they are. In `four_styles/photo` each class has a folder.
"""

import shutil
from pathlib import Path

import keras
import pyarrow.parquet as pq
import pytest
import yaml

import transfer
from tests.images import REAL_IMAGES
from transfer.cli.main import app

PHOTOGRAPHS = REAL_IMAGES / "four_styles/photo"
IMAGES_PER_CLASS = 10

pytestmark = pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(), reason=f"needs photographs in {PHOTOGRAPHS}; TRANSFER_PHOTOGRAPHS names another folder"
)


@pytest.fixture
def photos(tmp_path):
    """A few photographs of each class, beside a text and a broken file as folders of photographs have them."""
    for folder in sorted(path for path in PHOTOGRAPHS.iterdir() if path.is_dir()):
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:IMAGES_PER_CLASS]:
            shutil.copy(photo, tmp_path / "photos" / folder.name)
    some = next((tmp_path / "photos").glob("*/*"))
    some.with_name("broken.jpg").write_bytes(some.read_bytes()[:2000])
    some.with_suffix(".txt").write_text("A sidecar file.")
    return tmp_path / "photos"


@pytest.fixture
def base(tmp_path):
    """A network that nobody trained: enough to go the way, and with the same answers at both of its ends."""
    keras.utils.set_random_seed(1)
    image = keras.Input((96, 96, 3))
    features = keras.layers.Rescaling(1 / 255)(image)
    for filters in (8, 16):
        features = keras.layers.Conv2D(filters, 5, 4, activation="relu")(features)
    keras.Model(image, features).save(tmp_path / "base.keras")
    return tmp_path / "base.keras"


def test_from_a_folder_of_photographs_to_a_published_model_that_answers(photos, base, tmp_path, monkeypatch, capfd):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            app([*map(str, arguments)], prog_name="transfer")
        said = capfd.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    monkeypatch.chdir(tmp_path)
    call("init", "photos", "--output", "photos.yaml")
    config = yaml.safe_load(Path("photos.yaml").read_text())
    config["base"] = {"model": str(base), "image_size": 96}
    config["phases"] = [{"unfreeze": 0, "epochs": 2, "learning_rate": 1e-3}]
    config["publish"] = {"promote": "always"}
    Path("photos.yaml").write_text(yaml.safe_dump(config))
    assert "corrupt 1" in call("config", "check", "photos.yaml")
    call("train", "photos.yaml")
    call("predict", "photos.yaml", "--images", "photos", "--output", "answers.parquet")

    classes = sorted(path.name for path in photos.iterdir())
    model = transfer.load_model("photos", "storage")
    assert model.classes == classes
    answers = pq.read_table("answers.parquet").to_pylist()
    files = sorted(str(path.relative_to(photos)) for path in photos.glob("*/*.jpg"))
    assert sorted(row["key"] for row in answers) == files
    assert len(files) == len(classes) * IMAGES_PER_CLASS + 1
    assert [row["key"].endswith("broken.jpg") for row in answers] == [row["error"] is not None for row in answers]
    row = next(row for row in answers if row["error"] is None)
    (answer,) = model.predict(photos / row["key"])
    assert answer.label == row["class_name"]
    assert answer.probability == pytest.approx(row["confidence"], abs=1e-4)
