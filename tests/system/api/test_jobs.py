"""The Python product on a few digits: one run, asked in every way."""

import json
import pickle
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.base import clone

import transfer
from tests.digits import write_some_digits
from transfer.demo import BASE_PATH
from transfer.errors import DatasetError, RegistryError, TrainingError

# Of the demo's base, whose rounding depends on the batch.
CLOSE = 1e-5
TRAINED = {"model": str(BASE_PATH), "image_size": 32, "unfreeze": [0, 1], "epochs": [4, 1], "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_some_digits(tmp_path_factory.mktemp("api") / "photos")


@pytest.fixture(scope="module")
def run(photos):
    return transfer.train(photos, {"publish.promote": "always"}, storage=photos.parent / "storage", **TRAINED)


@pytest.fixture(scope="module")
def photo(photos):
    return next(photos.glob("3/*.png"))


def pixels_of(photo):
    return np.asarray(Image.open(photo).convert("RGB"))


def test_a_run_shows_its_figures(run):
    assert run.metrics.accuracy == np.diag(run.confusion).sum() / run.metrics.images
    assert list(run.history.phase) == [0, 0, 0, 0, 1]
    assert run.history.index.name == "epoch"
    assert len(run.mistakes) == min(24, round(run.metrics.images * (1 - run.metrics.accuracy)))
    assert re.match("Version 1 serves since .*Nothing served before", run.what_serves)
    assert run.id in repr(run)
    assert run.report_uri in repr(run)
    assert run._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_the_same_call_finds_the_run_and_so_does_its_name(run, photos):
    again = transfer.train(photos, {"publish.promote": "always"}, storage=photos.parent / "storage", **TRAINED)
    loaded = transfer.load_run(run.id, photos.parent / "storage")
    assert again.report == loaded.report == run.report
    assert again.version == loaded.version == run.version
    with pytest.raises(TrainingError, match="There is no run `digits-1`"):
        transfer.load_run("digits-1", photos.parent / "storage")


def test_all_ways_to_give_an_image_and_all_models_of_a_run_answer_the_same(run, photo):
    given = [photo, str(photo), photo.read_bytes(), pixels_of(photo), Image.fromarray(pixels_of(photo))]
    answers = run.predict(given)
    assert [each.image for each in answers] == [str(photo), str(photo), "#2", "#3", "#4"]
    first = answers[0]
    assert first.label == max(first.probabilities, key=first.probabilities.get)
    assert all(each.probabilities == first.probabilities for each in answers)

    model = transfer.load_model("photos", run.config.storage)
    assert (model.version, model.classes) == (1, run.classes)
    (published,) = model.predict(photo)
    by_keras = run.keras_model()(pixels_of(photo)[None].astype(np.float32)).numpy()[0]
    expected = list(first.probabilities.values())
    np.testing.assert_allclose(list(published.probabilities.values()), expected, atol=CLOSE)
    np.testing.assert_allclose(by_keras, expected, atol=CLOSE)


def test_an_image_of_pillow_is_turned_as_its_file_is(run, photo, tmp_path):
    turned = Image.open(photo).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", quality=100, exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        of_file, of_image = run.predict([tmp_path / "turned.jpg", opened])
    difference = [abs(of_file.probabilities[name] - of_image.probabilities[name]) for name in run.classes]
    assert max(difference) < 0.02  # The decoders of two libraries.


def test_a_folder_stands_for_its_images_and_what_is_no_image_is_named(run, photos):
    assert [Path(each.image).name for each in run.predict(photos / "3")] == sorted(
        path.name for path in (photos / "3").iterdir()
    )
    for images, found in {
        "nowhere.jpg": r"There are no files in nowhere\.jpg",
        b"abc": r"#0 cannot be answered \(not_an_image\)",
        3: "Image #0 is a int",
    }.items():
        with pytest.raises(DatasetError, match=found):
            run.predict(images)
    with pytest.raises(DatasetError, match=r"array float64 \[32, 32\]; expected uint8 \[height, width, 3\]"):
        run.predict(np.zeros((32, 32)))
    with pytest.raises(RegistryError, match="No version of model `dogs`"):
        transfer.load_model("dogs", run.config.storage)


def test_a_broken_file_in_a_folder_or_a_list_has_an_error_and_the_others_are_answered(run, photo, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, data in {"a.png": b"no image", "b.png": photo.read_bytes(), "c.png": photo.read_bytes()[:-30]}.items():
        (folder / name).write_bytes(data)
    (expected,) = run.predict(photo)
    for model in (run, transfer.load_model("photos", run.config.storage)):
        answers = model.predict(folder)
        assert [each.image for each in answers] == ["a.png", "b.png", "c.png"]
        assert [each.label for each in answers] == [None, expected.label, None]
        assert [(each.error or "").partition(":")[0] for each in answers] == ["not_an_image", "", "corrupt"]
        assert answers[0].probability is None
        assert answers[0].probabilities == {}
        assert [each.label for each in model.predict([folder / "a.png", b"", photo])] == [None, None, expected.label]
        assert [each.label for each in model.predict([b""])] == [None]
        with pytest.raises(DatasetError, match=r"a\.png cannot be answered \(not_an_image\)"):
            model.predict(folder / "a.png")


def test_the_keras_model_has_weights_of_its_own_and_loads_without_this_project(run, photo, tmp_path):
    model = run.keras_model()
    assert "transfer" not in json.dumps(model.get_config())
    model.save(tmp_path / "model.keras")
    images = pixels_of(photo)[None].astype(np.float32)
    before = model(images).numpy()
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    assert run.predict(photo)[0].probabilities == run.predict(photo)[0].probabilities
    loaded = keras.models.load_model(tmp_path / "model.keras")(images).numpy()
    np.testing.assert_array_equal(loaded, before)
    np.testing.assert_array_equal(run.keras_model()(images).numpy(), before)


def test_a_classifier_of_scikit_learn(photos, tmp_path):
    paths = sorted(photos.glob("*/*.png"))
    labels = [int(path.parent.name) for path in paths]
    classifier = transfer.ImageClassifier(str(BASE_PATH), image_size=32, storage=tmp_path / "storage")
    fitted = clone(classifier).fit(paths[::2], labels[::2])
    assert fitted.score(paths[1::2], labels[1::2]) > 0.6
    assert fitted.classes_.tolist() == list(range(10))
    assert not hasattr(classifier, "run_")
    loaded = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(loaded.predict_proba(paths[:5]), fitted.predict_proba(paths[:5]))
    np.testing.assert_allclose(fitted.predict_proba(paths[:5]).sum(axis=1), 1.0, atol=CLOSE)
    assert fitted.predict([]).shape == (0,)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for predict in (fitted.predict, fitted.predict_proba):
        with pytest.raises(DatasetError, match=r"2 of 3 images .* The first is .*/broken\.png: not_an_image: The file"):
            predict([paths[0], tmp_path / "broken.png", tmp_path / "nowhere.png"])
        with pytest.raises(DatasetError, match=r"X has 2 paths, and \d+ images are there; expected an image"):
            predict([paths[0], photos / "3"])
    with pytest.raises(DatasetError, match="There are 5 images and labels of shape"):
        fitted.fit(paths[:5], labels[:4])


def test_a_classifier_without_storage_keeps_nothing_says_nothing_and_is_not_pickled(photos, capfd):
    paths = sorted(photos.glob("[01]/*.png"))
    classifier = transfer.ImageClassifier(str(BASE_PATH), image_size=32, epochs=1)
    classifier.fit(paths, [path.parent.name == "1" for path in paths])
    assert capfd.readouterr().err == ""
    folder = Path(classifier.run_.config.storage.uri)
    assert folder.exists()
    with pytest.raises(DatasetError, match="Give it a `storage` before `fit`"):
        pickle.dumps(classifier)
    del classifier
    assert not folder.exists()
