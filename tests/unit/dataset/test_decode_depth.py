"""PNGs of 16 bits a channel in the graph, and images that become gray."""

import numpy as np
import pytest
import tensorflow as tf

from tests import images
from transfer.config import ImageInput
from transfer.dataset.decode import decode_image, decode_pixels, load_image, load_plain_jpeg

# 12 bits, as CT and thermal cameras have them: each value once.
TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TURNED = images.chunk(b"eXIf", images.tiff_block(6))
WINDOW = (1000, 3000)


def decoded(data, depth, background=None):
    return decode_image(tf.constant(data), background, depth=depth).numpy()


def in_window(values, low, high):
    return np.clip((values.astype(np.float64) - low) * 255 / (high - low), 0, 255)


def test_a_window_shows_the_values_in_it_from_0_to_255():
    found = decoded(images.deep_png(TWELVE_BITS), WINDOW)
    assert found.dtype == np.float32
    for channel in range(3):
        np.testing.assert_allclose(found[..., channel], in_window(TWELVE_BITS, *WINDOW), atol=1e-4)


def test_every_gray_level_is_kept():
    assert len(np.unique(decoded(images.deep_png(TWELVE_BITS), (0, 4095)))) == 4096
    assert len(np.unique(decoded(images.deep_png(TWELVE_BITS), "scale"))) == 4096
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(decoded(images.deep_png(every), (0, 65535)))) == 65536


def test_scale_goes_from_each_images_smallest_to_its_largest_value():
    values = 700 + TWELVE_BITS // 8
    np.testing.assert_allclose(
        decoded(images.deep_png(values), "scale")[..., 0], in_window(values, 700, 1211), atol=1e-4
    )
    assert not decoded(images.deep_png(np.full((4, 5), 999)), "scale").any()


def test_colors_share_one_scale():
    values = np.random.default_rng(0).integers(500, 900, (6, 7, 3)).astype(np.uint16)
    expected = in_window(values, values.min(), values.max())
    np.testing.assert_allclose(decoded(images.deep_png(values), "scale"), expected, atol=1e-4)


@pytest.mark.parametrize("depth", ["reject", "scale", (0, 20_000)])
def test_images_of_16_bits_are_turned_upright(depth):
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    found = decoded(images.deep_png(values, extra=TURNED), depth)
    np.testing.assert_array_equal(found, decoded(images.deep_png(np.rot90(values, -1)), depth))


@pytest.mark.parametrize("depth", ["scale", (0, 255)])
def test_images_of_8_bits_do_not_depend_on_depth(depth):
    picture = images.picture()
    files = [images.encode(picture, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]
    for data in [*files, images.encode(picture.convert("L"), "PNG")]:
        found = decoded(data, depth)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, decoded(data, "reject"))


def test_what_the_upper_8_bits_make_nearly_black_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match="nearly black"):
        decoded(images.deep_png(TWELVE_BITS), "reject")
    found = decoded(images.deep_png(TWELVE_BITS + 1), "reject")
    assert (found.dtype, found.max()) == (np.uint8, 16)


def test_transparent_pixels_of_16_bits_are_put_on_a_background_by_their_upper_bits_or_not_at_all():
    colors = np.random.default_rng(1).integers(0, 65536, (4, 4, 4))
    colors[..., 3] = 65535
    opaque = images.deep_png(colors)
    for depth in ("reject", "scale", (0, 40_000)):
        np.testing.assert_array_equal(decoded(opaque, depth, "#ffffff"), decoded(opaque, depth))
    colors[0, :, 3] = 0
    transparent = images.deep_png(colors)
    assert (decoded(transparent, "reject", "#ffffff")[0] == 255).all()
    for depth in ("scale", (0, 40_000)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="transparent"):
            decoded(transparent, depth, "#ffffff")


@pytest.mark.parametrize("depth", ["scale", WINDOW])
def test_tf_data_and_a_graph_give_the_same(depth):
    image_input = ImageInput(20, 30, depth=depth, channels=1)
    files = [
        images.deep_png(TWELVE_BITS),
        images.encode(images.picture(), "JPEG"),
        images.encode(images.picture(), "PNG"),
    ]
    found = tf.data.Dataset.from_tensor_slices(files).map(lambda data: load_image(data, image_input))
    assert found.element_spec == tf.TensorSpec([20, 30, 1], tf.float32)
    for data, image in zip(files, found, strict=True):
        np.testing.assert_array_equal(image, load_image(tf.constant(data), image_input))


def test_gray_is_exactly_itself_in_one_channel():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    one = ImageInput(16, 16, channels=1)
    for kind in ("PNG", "BMP", "WEBP"):
        data = tf.constant(images.encode(images.Image.fromarray(gray).convert("RGB"), kind))
        np.testing.assert_array_equal(decode_pixels(data, one)[..., 0], gray)
    deep = decode_pixels(tf.constant(images.deep_png(TWELVE_BITS)), ImageInput(64, 64, channels=1, depth=WINDOW))
    np.testing.assert_allclose(deep[..., 0], in_window(TWELVE_BITS, *WINDOW), atol=1e-4)


def test_colors_become_their_luminance():
    picture = images.picture()
    one = ImageInput(32, 48, channels=1)
    found = load_image(tf.constant(images.encode(picture, "PNG")), one)
    np.testing.assert_allclose(found[..., 0], np.asarray(picture) @ [0.299, 0.587, 0.114], atol=1e-3)
    jpeg = tf.constant(images.encode(picture, "JPEG"))
    np.testing.assert_array_equal(load_plain_jpeg(jpeg, one), load_image(jpeg, one))
