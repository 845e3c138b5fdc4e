import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.images import deep_png, encoded
from transfer.dataset.decode import decode_image
from transfer.reports.thumbnails import make_thumbnail


def decoded(thumbnail):
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail.uri.partition(",")[2])))
    image.load()
    return image


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 8), (8, 8)), ((160, 40), (160, 40)), ((640, 480), (160, 120)), ((10, 4000), (1, 160))]
)
def test_thumbnail_keeps_the_shape_within_160_pixels(size, expected):
    thumbnail = make_thumbnail(encoded(*size))
    assert (thumbnail.width, thumbnail.height) == decoded(thumbnail).size
    assert decoded(thumbnail).size == pytest.approx(expected, abs=1)


def test_photo_becomes_a_small_jpeg_and_a_tiny_picture_stays_lossless():
    photo, tiny = make_thumbnail(encoded(3000, 2000, kind="JPEG")), make_thumbnail(encoded(32, 32))
    assert photo.uri.startswith("data:image/jpeg;base64,")
    assert len(photo.uri) < 20_000
    assert not photo.is_tiny
    assert tiny.uri.startswith("data:image/png;base64,")
    assert tiny.is_tiny


def test_picture_is_turned_upright_and_loses_its_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "private description"
    thumbnail = make_thumbnail(encoded(300, 150, kind="JPEG", exif=exif, comment=b"private comment"))
    assert (thumbnail.width, thumbnail.height) == (80, 160)
    assert b"private" not in base64.b64decode(thumbnail.uri.partition(",")[2])
    assert not decoded(thumbnail).getexif()


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "GIF"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG")]
)
def test_every_color_mode_has_a_thumbnail(mode, kind):
    assert decoded(make_thumbnail(encoded(200, 200, kind=kind, mode=mode))).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_a_transparent_picture_is_shown_as_the_network_sees_it(kind):
    pixels = np.full((32, 32, 4), (200, 40, 40, 255), np.uint8)
    pixels[8:24, 8:24, 3] = 0
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    shown = np.asarray(decoded(make_thumbnail(data.getvalue())))
    np.testing.assert_array_equal(shown, decode_image(data.getvalue()).numpy())


def test_sixteen_bit_gray_keeps_its_shades():
    gradient = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    data = io.BytesIO()
    Image.fromarray(gradient).save(data, "PNG")
    shades = np.asarray(decoded(make_thumbnail(data.getvalue())))[..., 0]
    np.testing.assert_array_equal(shades, gradient >> 8)


def test_truncated_picture_has_no_thumbnail_and_says_so_in_the_log(caplog):
    assert make_thumbnail(encoded(300, 300, kind="JPEG")[:-200]) is None
    assert "No thumbnail" in caplog.text


@pytest.mark.parametrize("depth", ["scale", (500, 3000)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_16_bits_is_shown_in_the_models_window(depth, channels):
    values = np.stack([np.arange(4096, dtype=np.uint16).reshape(64, 64)] * channels, axis=-1)
    data = deep_png(values[..., 0] if channels == 1 else values)
    shown = np.asarray(decoded(make_thumbnail(data, depth))).astype(int)
    # Of colors, Pillow has 16 levels of these, and a window of their values.
    close = 1 if channels == 1 else 30
    assert np.abs(shown - decode_image(data, depth=depth).numpy()).max() <= close
