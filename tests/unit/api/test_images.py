"""Images as a Python program has them: what a model sees of them, and which of them end a call."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.sourcing import write_file
from transfer.api.images import predictions
from transfer.config import DatasetConfig, ImageInput, StorageConfig
from transfer.errors import DatasetError

TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def png(level):
    target = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(target, "PNG")
    return target.getvalue()


def shares(batches):
    """The answers of a model that finds how bright an image is."""
    bright = (pixels.mean(axis=(1, 2, 3)) / 255 for _, pixels in batches)
    return (np.stack([1 - share, share], axis=1) for share in bright)


def predict(images, *, image_input=ImageInput(4, 4), answer=shares):  # noqa: B008 - frozen
    return predictions(
        images,
        classes=["dark", "bright"],
        image_input=image_input,
        limits=DatasetConfig(source="images"),
        storage=StorageConfig(uri="/nowhere"),
        answer=answer,
    )


def seen(image, depth):
    """What a model is given for an image, [64, 64, 3]."""
    found = []

    def answer(batches):
        for _, pixels in batches:
            found.extend(pixels)
            yield np.full((len(pixels), 2), 0.5, np.float32)

    predict(image, image_input=ImageInput(64, 64, depth=depth), answer=answer)
    return found[0]


def test_an_image_of_pillow_keeps_its_16_bits():
    pixels = seen(Image.fromarray(TWELVE_BITS), (0, 4095))
    np.testing.assert_allclose(pixels[..., 0], TWELVE_BITS * (255 / 4095), atol=1e-3)


@pytest.mark.parametrize("mode", [np.int32, np.float32])
def test_an_image_of_32_bits_is_refused_and_not_cut_off_at_white(mode):
    with pytest.raises(DatasetError, match=r"#0 cannot be answered \(unsupported_format\): pixels of 32 bits"):
        seen(Image.fromarray(TWELVE_BITS.astype(mode)), "scale")


def reasons(answers):
    return [(each.error or "").partition(":")[0] or each.label for each in answers]


def test_a_path_where_nothing_is_ends_a_call_only_if_it_was_given_alone(tmp_path):
    there = tmp_path / "there.png"
    write_file(there, png(250))
    (tmp_path / "empty").mkdir()
    nowhere = tmp_path / "nowhere.png"
    answers = predict([nowhere, there, tmp_path / "empty"])
    assert reasons(answers) == ["missing", "bright", "missing"]
    assert [each.image for each in answers] == [str(nowhere), str(there), str(tmp_path / "empty")]
    assert reasons(predict([nowhere])) == ["missing"]
    for alone in (nowhere, tmp_path / "empty"):
        with pytest.raises(DatasetError, match="There are no files in"):
            predict(alone)


def test_an_opened_file_that_is_cut_short_has_an_error_in_a_list():
    exif = Image.Exif()
    exif[0x0112] = 6
    target = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(target, "JPEG", exif=exif)
    cut = target.getvalue()[:-900]
    assert reasons(predict([Image.open(io.BytesIO(cut)), Image.new("L", (4, 4), 0)])) == ["corrupt", "dark"]
    with pytest.raises(DatasetError, match=r"#0 cannot be answered \(corrupt\)"):
        predict(Image.open(io.BytesIO(cut)))


def test_what_is_no_image_ends_a_call_also_in_a_list():
    for given, said in {3: "is a int", "https://example.org/a.png": "at https://, which is not read"}.items():
        with pytest.raises(DatasetError, match=said):
            predict([png(250), given])
