import io
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import images
from transfer.config import ImageInput
from transfer.dataset.decode import decode_image, fit_image, load_image

PICTURE = images.picture()
GRAY = PICTURE.convert("L")
FRAMES = [PICTURE, PICTURE.rotate(180), images.picture(seed=1)]
# In every format, what decodes exactly to what Pillow shows.
EXACT = {
    "PNG": images.encode(PICTURE, "PNG"),
    "PNG of one bit": images.encode(PICTURE.convert("1"), "PNG"),
    "PNG, gray": images.encode(GRAY, "PNG"),
    "PNG, gray of two bits": images.png(4, 2, 2, 0, b"\0\x1b\0\xe4"),
    "PNG, gray with alpha": images.encode(images.with_alpha(PICTURE).convert("LA"), "PNG"),
    "PNG with alpha": images.encode(images.with_alpha(PICTURE), "PNG"),
    "PNG with a palette": images.encode(PICTURE.quantize(64), "PNG"),
    "PNG with a palette of two bits": images.encode(PICTURE.quantize(4), "PNG", bits=2),
    "PNG with a transparent palette": images.encode(PICTURE.quantize(64), "PNG", transparency=3),
    "PNG of 16 bits, color": images.png(2, 1, 16, 2, b"\0" + bytes(range(0, 240, 20))),
    # Three of Adam7's seven passes have pixels.
    "PNG, interlaced": images.png(2, 2, 8, 0, b"\0\x10\0\x20\0\x30\x40", interlace=1),
    "PNG, animated": images.animate(FRAMES, "PNG"),
    "GIF": images.encode(PICTURE, "GIF"),
    "GIF, gray": images.encode(GRAY, "GIF"),
    "GIF, animated": images.animate(FRAMES, "GIF"),
    "GIF without a trailer": images.gif((4, 3), (0, 0, 4, 3), trailer=b""),
    "BMP": images.encode(PICTURE, "BMP"),
    "BMP of 32 bits": images.bmp(PICTURE, bits=32),
    "BMP of 32 bits with masks": images.bmp(
        PICTURE, bits=32, compression=3, masks=bytes([0, 0, 255, 0, 0, 255, 0, 0, 255, 0, 0, 0])
    ),
    "BMP, odd width, from the top": images.bmp(images.picture(31, 17), top_down=True),
    "BMP with bytes behind it": images.encode(PICTURE, "BMP") + b"\0\0",
    "BMP, gray": images.encode(GRAY, "BMP"),
    "BMP with a palette": images.encode(PICTURE.quantize(256), "BMP"),
    "BMP with a short palette": images.encode(images.picture(31, 17).quantize(20), "BMP"),
    "WebP": images.encode(PICTURE, "WEBP"),
    "WebP, lossy": images.encode(PICTURE, "WEBP", lossless=False),
    "WebP with alpha": images.encode(images.with_alpha(PICTURE), "WEBP"),
    "WebP with alpha, lossy": images.encode(images.with_alpha(PICTURE), "WEBP", lossless=False),
    "WebP with a profile": images.encode(PICTURE, "WEBP", icc_profile=b"profile"),
    "WebP, animated": images.animate(FRAMES, "WEBP"),
    "WebP, animated with alpha": images.animate([images.with_alpha(frame) for frame in FRAMES], "WEBP"),
}
# Two JPEG libraries round differently: up to 4 of 255 in a smooth picture, 8 through print colors.
CLOSE = {
    "JPEG": images.encode(PICTURE, "JPEG"),
    "JPEG, gray": images.encode(GRAY, "JPEG"),
    "JPEG, progressive": images.encode(PICTURE, "JPEG", progressive=True),
    "JPEG, CMYK of Adobe": images.encode(PICTURE.convert("CMYK"), "JPEG"),
}
REFUSED = {
    "nothing": b"",
    "text": b"hello",
    "a TIFF": images.encode(PICTURE, "TIFF"),
    "a JPEG cut short": CLOSE["JPEG"][:-20],
    "a PNG cut short": EXACT["PNG"][:-20],
    "a WebP cut short": EXACT["WebP"][:-20],
    "a BMP cut short": EXACT["BMP"][:-20],
    "a BMP of one bit": images.encode(PICTURE.convert("1"), "BMP"),
    "a BMP of four bits": images.bmp(PICTURE)[:28] + b"\x04" + images.bmp(PICTURE)[29:],
    "a BMP with OS/2's header": b"BM" + struct.pack("<IHHIIHHHH", 74, 0, 0, 26, 12, 4, 4, 1, 24) + bytes(48),
    "a compressed BMP": images.bmp(PICTURE, compression=1),
    "a BMP with other masks": images.bmp(
        PICTURE, bits=32, compression=3, masks=bytes([255, 0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0])
    ),
    "a GIF whose frame is smaller than its screen": images.gif((8, 8), (0, 0, 4, 4)),
    "a GIF whose frame is larger than its screen": images.gif((4, 4), (0, 0, 8, 8)),
}


def shown(image_bytes: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image_bytes)).convert("RGB"))


def in_tf_data(files: list[bytes]) -> list[np.ndarray]:
    return list(tf.data.Dataset.from_tensor_slices(files).map(decode_image).as_numpy_iterator())


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_exactly_what_pillow_shows(name):
    pixels = decode_image(tf.constant(EXACT[name]))
    assert pixels.dtype == tf.uint8
    np.testing.assert_array_equal(pixels, shown(EXACT[name]))


@pytest.mark.parametrize("name", CLOSE)
def test_jpeg_pixels_are_what_pillow_shows_within_rounding(name):
    difference = np.abs(decode_image(tf.constant(CLOSE[name])).numpy().astype(int) - shown(CLOSE[name]))
    assert difference.max() <= 8 if "CMYK" in name else difference.max() <= 4


@pytest.mark.parametrize("name", ["JPEG", "JPEG, gray", "JPEG, progressive"])
def test_jpeg_pixels_are_those_of_tensorflows_own_op(name):
    np.testing.assert_array_equal(decode_image(tf.constant(CLOSE[name])), tf.io.decode_jpeg(CLOSE[name], channels=3))


def test_sixteen_bits_of_gray_keep_the_upper_eight():
    image_bytes = images.png(3, 1, 16, 0, b"\0\x12\xff\x80\x00\xff\x7f")
    np.testing.assert_array_equal(decode_image(tf.constant(image_bytes))[0, :, 0], [0x12, 0x80, 0xFF])


def test_transparent_pixels_of_a_gif_are_black_and_the_others_as_they_are():
    picture = images.with_alpha(PICTURE)
    image_bytes = images.encode(picture, "GIF")
    file = Image.open(io.BytesIO(image_bytes)).convert("RGBA")
    is_seen = np.asarray(file)[..., 3] > 0
    assert not is_seen.all()

    pixels = decode_image(tf.constant(image_bytes)).numpy()

    np.testing.assert_array_equal(pixels[is_seen], np.asarray(file)[is_seen][:, :3])
    assert not pixels[~is_seen].any()


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_the_picture_is_an_error(name):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(REFUSED[name]))


def test_tf_data_gives_the_same_pixels_for_all_formats():
    files = [*EXACT.values(), *CLOSE.values()]
    for image_bytes, pixels in zip(files, in_tf_data(files), strict=True):
        np.testing.assert_array_equal(pixels, decode_image(tf.constant(image_bytes)))


def test_a_broken_file_is_an_error_in_tf_data():
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_tf_data([REFUSED["a compressed BMP"]])


def test_an_exported_signature_gives_the_same_pixels_for_all_formats(tmp_path):
    image_input = ImageInput(24, 20, fit="crop", crop_share=0.9, antialias=True)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(image_bytes):
        return tf.map_fn(
            lambda one: load_image(one, image_input),
            image_bytes,
            fn_output_signature=tf.TensorSpec([24, 20, 3], tf.float32),
        )

    module = tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": serve})
    turned = images.encode(PICTURE, "JPEG", exif=b"Exif\0\0" + images.tiff_block(6))
    files = [*EXACT.values(), *CLOSE.values(), turned]

    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](tf.constant(files))

    expected = np.stack([load_image(tf.constant(image_bytes), image_input) for image_bytes in files])
    np.testing.assert_array_equal(next(iter(served.values())), expected)


def test_a_loaded_image_is_the_decoded_one_resized_to_the_square():
    turned = images.encode(PICTURE, "JPEG", exif=b"Exif\0\0" + images.tiff_block(6))
    loaded = load_image(tf.constant(turned), ImageInput(20, 20))
    assert loaded.dtype == tf.float32
    expected = keras.ops.image.resize(
        tf.cast(decode_image(tf.constant(turned)), tf.float32), (20, 20), interpolation="bilinear", antialias=False
    )
    # float32 sums of four neighbors of up to 255.
    np.testing.assert_allclose(loaded, expected, atol=1e-4)


@pytest.mark.parametrize(("fit", "option"), [("crop", "crop_to_aspect_ratio"), ("pad", "pad_to_aspect_ratio")])
@pytest.mark.parametrize("size", [(20, 20), (12, 36), (60, 20)])
def test_an_image_is_cropped_and_padded_as_keras_does(fit, option, size):
    image = np.asarray(images.picture(120, 60), np.float32)
    found = fit_image(tf.constant(image), ImageInput(*size, fit=fit))
    resized = keras.ops.image.resize(image, size, interpolation="bilinear", **{option: True})
    np.testing.assert_allclose(found, resized, atol=1e-3)


def test_the_bars_beside_a_padded_image_do_not_mix_with_it():
    image = np.full((60, 120, 3), 200, np.float32)
    padded = fit_image(tf.constant(image), ImageInput(20, 20, fit="pad", antialias=True))
    np.testing.assert_allclose(padded[5:15], 200.0, atol=1e-3)
    np.testing.assert_array_equal(np.delete(padded, range(5, 15), axis=0), 0.0)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_line_of_pixels_can_be_fitted(fit):
    found = fit_image(tf.ones((3, 1000, 3)), ImageInput(20, 30, fit=fit))
    assert found.shape == (20, 30, 3)
    assert found.numpy().max() == 1


@pytest.mark.parametrize(("share", "sides"), [(0.5, (30, 30)), (0.001, (1, 1))])
def test_a_share_of_the_largest_part_is_around_the_center(share, sides):
    image = np.asarray(images.picture(120, 60))
    top, left = (60 - sides[0]) // 2, (120 - sides[1]) // 2
    part = image[top : top + sides[0], left : left + sides[1]]
    found = fit_image(tf.constant(image), ImageInput(16, 16, fit="crop", crop_share=share))
    np.testing.assert_allclose(found, fit_image(tf.constant(part), ImageInput(16, 16)), atol=1e-3)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_batch_is_fitted_as_each_of_its_images(fit):
    batch = tf.constant(np.stack([images.picture(seed=seed) for seed in range(3)]))
    image_input = ImageInput(20, 28, fit=fit, antialias=True)
    expected = np.stack([fit_image(image, image_input) for image in batch])
    np.testing.assert_allclose(fit_image(batch, image_input), expected, atol=1e-3)


def test_with_antialiasing_every_pixel_counts():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 240
    found = fit_image(tf.constant(stripes), ImageInput(8, 8, antialias=True)).numpy()
    np.testing.assert_allclose(found[2:-2, 2:-2], 30.0, atol=2.0)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_loaded_image_has_a_static_shape_so_that_it_can_be_batched(fit):
    image_input = ImageInput(20, 28, fit=fit)
    dataset = tf.data.Dataset.from_tensors(EXACT["PNG"]).map(lambda image_bytes: load_image(image_bytes, image_input))
    assert dataset.element_spec == tf.TensorSpec([20, 28, 3], tf.float32)


def on_color(image, color):
    """The picture on a color, in whole numbers; the color that is stored under a transparent pixel does not count."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    alpha = pixels[..., 3:]
    return (pixels[..., :3] * alpha + np.array(color) * (255 - alpha) + 127) // 255


TRANSPARENT = {
    "PNG": images.encode(images.with_alpha(PICTURE), "PNG"),
    "PNG, gray": images.encode(images.with_alpha(PICTURE).convert("LA"), "PNG"),
    "PNG with a transparent palette": images.encode(PICTURE.quantize(64), "PNG", transparency=3),
    "WebP": images.encode(images.with_alpha(PICTURE), "WEBP"),
    "WebP, animated": images.animate([images.with_alpha(frame) for frame in FRAMES], "WEBP"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_lie_on_the_background(name):
    data = TRANSPARENT[name]
    decoded = decode_image(tf.constant(data), "#ff8000").numpy()
    np.testing.assert_array_equal(decoded, on_color(Image.open(io.BytesIO(data)), (255, 128, 0)))


@pytest.mark.parametrize("name", ["PNG", "PNG, gray", "GIF", "BMP of 32 bits", "BMP with a palette", "WebP"])
def test_what_has_no_alpha_is_the_same_on_any_background(name):
    data = tf.constant(EXACT[name])
    np.testing.assert_array_equal(decode_image(data, "#ff8000"), decode_image(data))
