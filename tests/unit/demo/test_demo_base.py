"""The base network that the demo ships, and the script that makes it."""

import unicodedata
import zipfile

import keras
import numpy as np
import pytest

from scripts import glyphs
from scripts.pretrain_demo_base import build_base
from transfer.demo import BASE_PATH


@pytest.fixture(scope="module")
def shipped():
    return keras.saving.load_model(BASE_PATH, safe_mode=True)


def test_the_shipped_base_is_small_and_carries_no_date():
    assert BASE_PATH.stat().st_size <= 450_000
    with zipfile.ZipFile(BASE_PATH) as archive:
        assert b"date" not in archive.read("metadata.json")
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_shipped_base_takes_images_and_answers_a_feature_map(shipped):
    assert shipped.input_shape == (None, 32, 32, 3)
    assert shipped.output_shape == (None, 4, 4, 128)
    features = shipped(np.full((2, 32, 32, 3), 255.0, np.float32)).numpy()
    assert np.isfinite(features).all()


def test_the_shipped_base_is_the_one_that_the_script_builds(shipped):
    assert shipped.to_json() == build_base().to_json()


def test_layers_are_named_after_four_blocks_in_order(shipped):
    names = [layer.name for layer in shipped.layers if layer.name not in {"images", "rescaling"}]
    blocks = [name.split("_")[0] for name in names]
    assert blocks == sorted(blocks)
    assert set(blocks) == {"block1", "block2", "block3", "block4"}


def test_the_shipped_base_behaves_the_same_in_training_and_in_inference(shipped):
    images = glyphs.render_many(4, seed=0)[0].astype(np.float32)
    np.testing.assert_array_equal(shipped(images, training=True), shipped(images, training=False))


@pytest.mark.thorough
def test_the_shipped_base_tells_letters_apart_that_it_never_saw(shipped):
    images, labels = glyphs.render_many(2000, seed=12345)
    features = shipped.predict(images.astype(np.float32), batch_size=256, verbose=0).mean(axis=(1, 2))
    train, test = slice(0, 1000), slice(1000, None)
    centers = np.stack([features[train][labels[train] == index].mean(axis=0) for index in range(len(glyphs.CLASSES))])
    distances = ((features[test][:, np.newaxis] - centers) ** 2).sum(axis=-1)
    assert (distances.argmin(axis=1) == labels[test]).mean() > 0.75  # 0.03 by chance, 0.2 with random weights


def test_no_digit_and_nothing_drawn_like_0_or_1_is_among_the_letters():
    drawn = {face.character(letter) for face in glyphs.FACES for letter in face.letters}
    assert all(unicodedata.category(character) in {"Lu", "Ll"} for character in drawn)
    letters = {unicodedata.normalize("NFKC", character) for character in drawn}
    assert letters == {letter for group in glyphs.CLASSES for letter in group}
    assert not letters & set("0123456789OoIli")


def test_a_letter_belongs_to_one_class_only():
    letters = "".join(glyphs.CLASSES)
    assert len(letters) == len(set(letters)) == 47


def test_every_face_draws_every_one_of_its_letters():
    for face in glyphs.FACES:
        for letter in face.letters:
            assert glyphs.draw_letter(face, letter, stroke_px=0).max() > 0.5


def test_the_same_seed_draws_the_same_letters_and_another_seed_others():
    images, labels = glyphs.render_many(60, seed=3)
    again, labels_again = glyphs.render_many(60, seed=3)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert images.shape == (60, 32, 32, 3)
    assert images.dtype == np.uint8
    assert not np.array_equal(images, glyphs.render_many(60, seed=4)[0])
