"""Caching features or computing them again, decided by sizes."""

import keras
import pytest

from transfer.backbone.files import RANGES
from transfer.config import ImageInput
from transfer.dataset.manifest import Shard
from transfer.features.frozen import FrozenPart
from transfer.training import feature_plan
from transfer.training.feature_plan import choose_caching


def images_of(size_bytes):
    return [
        Shard(name=n, sha256=n, split="train", rows=10, size_bytes=each)
        for n, each in (("a", 8 * size_bytes), ("b", 12 * size_bytes))
    ]


def cut_after(layer, size=64):
    entrance = keras.Input((size, size, 3))
    network = keras.Model(entrance, layer(entrance))
    return FrozenPart(base="own", image_input=ImageInput(size, size), preprocess=RANGES["0..1"], network=network)


def test_features_smaller_than_the_images_are_cached():
    frozen_part = cut_after(keras.layers.MaxPooling2D(4))
    assert (frozen_part.row_bytes, choose_caching(frozen_part, images_of(3072)).cached) == (3072, True)
    assert choose_caching(frozen_part, images_of(3072)).reason == "3.0 KiB an image, and the image itself has 3.0 KiB"
    assert not choose_caching(frozen_part, images_of(3071)).cached


def test_vectors_are_cached_however_small_the_images_are():
    choice = choose_caching(cut_after(keras.layers.GlobalAveragePooling2D()), images_of(1))
    assert choice.explained == "on cached features: a vector of 3 numbers an image."


@pytest.mark.parametrize(("kernel", "cached"), [(1, False), (20, True)])
def test_large_maps_are_cached_where_much_work_is_behind_each_byte(kernel, cached, monkeypatch):
    # Each number of 4 bytes takes 3 · kernel² multiply-adds.
    frozen_part = cut_after(keras.layers.Conv2D(8, kernel, padding="same"))
    choice = choose_caching(frozen_part, images_of(500))
    assert choice.cached == cached
    sizes, work = choice.reason.split("; ")
    assert sizes == "128.0 KiB an image, and the image itself has 500 bytes"
    assert work == f"{3 * kernel**2 / 4:,.0f} multiply-adds a byte, and from 250 on features are cached"
    monkeypatch.setattr(feature_plan, "sees_gpu", lambda: True)
    assert not choose_caching(frozen_part, images_of(500)).cached
