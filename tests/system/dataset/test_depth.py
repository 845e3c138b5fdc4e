"""Pictures that use few of their 16 bits, as of thermal cameras, from their files to a published model's answers."""

import keras
import numpy as np
import pytest
from PIL import Image

import transfer
from transfer.errors import DatasetError
from transfer.jobs import ingest, predict
from transfer.training.run import run_id_for

CLASSES = ["empty", "block"]
IMAGES_PER_CLASS = 30
WINDOW = {"window": [0, 255]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes that differ in the lower 8 of 16 bits only, as PNG and TIFF; the upper 8 are 0 everywhere."""
    folder = tmp_path_factory.mktemp("depth") / "scans"
    draw = np.random.default_rng(1)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            values = draw.integers(0, 60, (48, 48))
            values[8:40, 8:40] += 180 * label
            Image.fromarray(values.astype(np.uint16)).save(folder / name / f"{number}.{'png' if number % 2 else 'tif'}")
    return folder


@pytest.fixture(scope="module")
def base(source):
    """A gray network of random weights, whose features are how bright parts of the picture are."""
    keras.utils.set_random_seed(3)
    images = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    keras.Model(images, keras.layers.Conv2D(16, 3, strides=2, activation="relu")(x)).save(source.parent / "gray.keras")
    return source.parent / "gray.keras"


def trained(source, base, **dataset):
    changes = {f"dataset.{key}": value for key, value in dataset.items()}
    settings = {"base.channels": 1, "dataset.transcode": True, "publish.promote": "always", **changes}
    options = {"model": str(base), "image_size": 32, "unfreeze": [0], "epochs": [30], "learning_rate": 3e-2}
    return transfer.train(source, settings, storage=source.parent / "storage", **options)


def test_without_a_depth_they_are_refused_with_what_helps(source, base):
    with pytest.raises(DatasetError, match=r"too_dark: .*dataset.depth: \{window: \[0, 255\]\}"):
        trained(source, base)


def test_a_window_tells_them_apart_in_training_in_predict_and_in_programs(source, base):
    run = trained(source, base, depth=WINDOW)
    assert run.metrics.accuracy == 1.0
    assert min(row.probability for row in run.predict(source / "empty")) > 0.6

    files = [
        source / "empty" / "0.tif",
        source / "empty" / "1.png",
        source / "block" / "0.tif",
        source / "block" / "1.png",
    ]
    rows = predict(run.config, images=[str(file) for file in files]).predictions
    assert [row["class_name"] for row in rows] == [file.parent.name for file in files]
    model = transfer.load_model("scans", run.config.storage)
    for given in (files, [Image.open(file) for file in files], [file.read_bytes() for file in files]):
        assert [answer.label for answer in model.predict(given)] == [file.parent.name for file in files]


def test_another_depth_of_the_same_files_is_another_version_and_another_run(source, base):
    windowed = trained(source, base, depth=WINDOW)
    config = windowed.config.model_copy(
        update={"dataset": windowed.config.dataset.model_copy(update={"depth": "scale"})}
    )
    scaled = ingest(config)
    assert scaled.number == windowed.dataset.number + 1
    assert scaled.shards == windowed.dataset.shards
    assert run_id_for(config, scaled) != windowed.id
