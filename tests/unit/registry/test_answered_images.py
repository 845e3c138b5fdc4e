"""Images put to a model that answers with their brightness, so that no answer fits another image."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from transfer.config import DatasetConfig, ImageInput
from transfer.dataset.batches import checked_and_decoded, decoded
from transfer.dataset.manifest import MISSING, Reject
from transfer.registry.answered_images import answered_images
from transfer.registry.published_model import BATCH_SIZE

GONE = Reject("gone", MISSING, "there is no such file")


def gray(level, kind="PNG", size=4):
    target = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(target, kind)
    return target.getvalue()


def in_turn(batches):
    return (pixels.mean(axis=(1, 2, 3))[:, None] for _, pixels in batches)


def read_ahead(batches):
    return in_turn(list(batches))


def answers_for(given, answer=in_turn, **limits):
    configured = DatasetConfig(source="images", **limits)
    prepare = partial(checked_and_decoded, image_input=ImageInput(4, 4), limits=configured)
    readable = ((key, lambda data=data: data) for key, data in given)
    answered = [each for batch in answered_images(readable, prepare=prepare, answer=answer) for each in batch]
    return [(key, said.reason if isinstance(said, Reject) else round(float(said[0]))) for key, said in answered]


@pytest.mark.parametrize("answer", [in_turn, read_ahead])
def test_each_image_has_its_own_answer_in_its_place_also_around_batches_that_are_all_refused(answer):
    refused = [("gone", GONE)] * BATCH_SIZE
    mixed = [(f"{level}", gray(level)) if level % 3 else ("broken", b"no image") for level in range(1, BATCH_SIZE + 1)]
    given = [*refused, *refused, *mixed, *refused, ("last", gray(200)), ("gone", GONE)]
    named = {"gone": "missing", "broken": "not_an_image", "last": 200}
    assert answers_for(given, answer) == [(key, named.get(key) or int(key)) for key, _ in given]
    assert answers_for(refused, answer) == [("gone", "missing")] * BATCH_SIZE
    assert answers_for([], answer) == []


@pytest.mark.parametrize("transcode", [False, True])
def test_what_an_ingest_would_transcode_is_answered_whatever_the_configuration_says(transcode):
    assert answers_for([("scan", gray(90, "TIFF"))], transcode=transcode) == [("scan", 90)]


def test_the_limits_and_the_background_of_the_configuration_hold():
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    given = [("large", gray(90, size=5)), ("clear", clear.getvalue())]
    assert answers_for(given, max_pixels=16, background="#ffffff") == [("large", "pixel_bomb"), ("clear", 255)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("channels", [3, 1])
def test_an_image_that_the_check_has_decoded_is_the_one_that_the_network_takes(kind, channels):
    image_input = ImageInput(5, 7, fit="crop", channels=channels)
    target = io.BytesIO()
    Image.linear_gradient("L").resize((20, 11)).convert("RGB").save(target, kind)
    limits = DatasetConfig(source="images")
    data, pixels = checked_and_decoded(target.getvalue(), key="a", image_input=image_input, limits=limits)
    np.testing.assert_array_equal(pixels, decoded(data, image_input=image_input))
