"""Encoded images to pixels, in the TensorFlow graph: the one decoder of ingest, training, evaluation and serving.

What each format gives, odd cases included, is written in docs/images.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from transfer.config import Depth, ImageInput
from transfer.dataset.orientation import apply_orientation, exif_orientation, little_endian, read_bytes

SMALLEST_BRIGHTEST = 4096
"""Smallest largest value of 16 bits of an image whose upper 8 bits are enough: 16 of their 256 levels are left."""
_LUMINANCE = (0.299, 0.587, 0.114)


@tf.autograph.experimental.do_not_convert
def decode_image(image_bytes: tf.Tensor, background: str | None = None, *, depth: Depth = "reject") -> tf.Tensor:
    """Decode a JPEG, PNG, GIF (first frame), BMP or WebP (first frame): string [] to [height, width, 3] in 0..255.

    It is uint8, or float32 where `depth` may keep more levels than that of PNGs of 16 bits a channel. EXIF orientation
    is applied, gray is repeated in three channels. Alpha is dropped, or PNG and WebP are put on the color `background`,
    `#rrggbb`. Works eagerly, in `tf.data` and in an exported signature. Raises `tf.errors.InvalidArgumentError` for
    bytes that are no such image, are broken, or are of a variant that TensorFlow would decode to something else than
    the picture; and for a PNG of 16 bits that `depth` makes nearly black, or that has transparent pixels although there
    is a background and a `depth` other than `reject`.
    """
    first = tf.strings.substr(image_bytes, 0, 1)
    dtype = tf.uint8 if depth == "reject" else tf.float32

    def others() -> tf.Tensor:
        return tf.cond(
            first == b"\x89",
            lambda: _decode_png(image_bytes, depth, background),
            lambda: tf.cast(_decode_carefully(image_bytes, background), dtype),
        )

    # JPEG, the most frequent, passes one branch.
    image = tf.cond(first == b"\xff", lambda: tf.cast(_decode(image_bytes, channels=3), dtype), others)
    image.set_shape([None, None, 3])
    return apply_orientation(image, exif_orientation(image_bytes))


@tf.autograph.experimental.do_not_convert
def decode_deep_png(image_bytes: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """A PNG of 16 bits a channel as it is stored, not turned upright: uint16 [height, width, channels].

    With 4 channels the last one is alpha, 65535 where the file has none. Raises `tf.errors.InvalidArgumentError`.
    """
    return tf.io.decode_png(image_bytes, channels=channels, dtype=tf.uint16)


@tf.autograph.experimental.do_not_convert
def decode_pixels(image_bytes: tf.Tensor, image_input: ImageInput, background: str | None = None) -> tf.Tensor:
    """Decode an image to what a network takes, but for the size: string [] to [height, width, channels] in 0..255.

    Raises what `decode_image` raises.
    """
    return _in_channels(decode_image(image_bytes, background, depth=image_input.depth), image_input)


@tf.autograph.experimental.do_not_convert
def load_image(image_bytes: tf.Tensor, image_input: ImageInput, background: str | None = None) -> tf.Tensor:
    """Decode an image and fit it to what a network takes: string [] to float32 [height, width, channels] in 0..255.

    Raises what `decode_image` raises.
    """
    return fit_image(decode_pixels(image_bytes, image_input, background), image_input)


@tf.autograph.experimental.do_not_convert
def fit_decoded(pixels: tf.Tensor, image_input: ImageInput) -> tf.Tensor:
    """The rest of `load_image` after `decode_image`, from pixels [height, width, 3]."""
    return fit_image(_in_channels(pixels, image_input), image_input)


@tf.autograph.experimental.do_not_convert
def load_plain_jpeg(image_bytes: tf.Tensor, image_input: ImageInput) -> tf.Tensor:
    """What `load_image` gives for bytes that `is_plain_jpeg`, by a graph that is built in a tenth of the time."""
    return fit_image(_in_channels(_decode(image_bytes, channels=3), image_input), image_input)


@tf.autograph.experimental.do_not_convert
def fit_image(image: tf.Tensor, image_input: ImageInput) -> tf.Tensor:
    """Decoded pixels as a network takes them: [..., any height, any width, channels] to [..., height, width, channels].

    One image, or a batch of images of one size, in 0..255; it becomes float32. Resized bilinearly; what comes first or
    last is as `image_input` says. The one place where an image's size changes, in training and in serving. It takes
    images of any size, so an image that ingest's check has decoded cannot fail here.
    """
    size = (image_input.height, image_input.width)
    resize = functools.partial(tf.image.resize, method="bilinear", antialias=image_input.antialias)
    if image_input.fit == "pad":
        return _with_bars(image, size, resize)
    if image_input.fit == "crop":
        image = _center(image, size, image_input.crop_share)
    return resize(image, size)


def _with_bars(image: tf.Tensor, size: tuple[int, int], resize: Callable[..., tf.Tensor]) -> tf.Tensor:
    """The whole image in its own shape, in the middle of black bars."""
    found, wanted = (tf.cast(sides, tf.float64) for sides in (tf.shape(image)[-3:-1], tf.constant(size)))
    scaled = tf.cast(tf.round(tf.reduce_min(wanted / found) * found), tf.int32)
    # A long, thin image keeps a line of one pixel.
    resized = resize(image, tf.clip_by_value(scaled, 1, size))
    missing = tf.constant(size) - tf.shape(resized)[-3:-1]
    before = missing // 2
    of_sides = tf.stack([before, missing - before], axis=1)
    padded = tf.pad(resized, tf.pad(of_sides, [[image.shape.rank - 3, 1], [0, 0]]))
    return tf.ensure_shape(padded, [*image.shape[:-3], *size, image.shape[-1]])


def _center(image: tf.Tensor, size: tuple[int, int], share: float) -> tf.Tensor:
    """The largest part of the shape of `size` around the center, or that share of it a side, in whole pixels."""
    found = tf.shape(image)[-3:-1]
    scale = share * tf.reduce_min(tf.cast(found, tf.float64) / tf.constant(size, tf.float64))
    wanted = tf.cast(tf.round(scale * tf.constant(size, tf.float64)), tf.int32)
    sides = tf.clip_by_value(wanted, 1, found)
    begin = (found - sides) // 2
    end = begin + sides
    return image[..., begin[0] : end[0], begin[1] : end[1], :]


def _in_channels(image: tf.Tensor, image_input: ImageInput) -> tf.Tensor:
    """Colors as they are, or their luminance as float32. What is gray stays exactly what it is."""
    if image_input.channels == 3:
        return image
    red, green, blue = tf.unstack(tf.cast(image, tf.float32), axis=-1)
    of_red, _, of_blue = _LUMINANCE
    # The three weights add up to 1. Written so that no rounding changes a gray.
    return (green + of_red * (red - green) + of_blue * (blue - green))[..., None]


def _decode_png(image_bytes: tf.Tensor, depth: Depth, background: str | None) -> tf.Tensor:
    """Without alpha, or on a background: uint8 [height, width, 3], or float32 where `depth` is not `reject`."""
    channels = 3 if background is None else 4

    def deep() -> tf.Tensor:
        values = decode_deep_png(image_bytes, channels)
        return _upper_bits(values, background) if depth == "reject" else _in_window(values, depth)

    def usual() -> tf.Tensor:
        image = _on_background(_decode(image_bytes, channels=channels), background)
        return image if depth == "reject" else tf.cast(image, tf.float32)

    return tf.cond(read_bytes(image_bytes, 24, 1)[0] == 16, deep, usual)


def _upper_bits(values: tf.Tensor, background: str | None) -> tf.Tensor:
    """Values of 16 bits, [height, width, 3 or 4], as uint8 [height, width, 3]."""
    values = tf.cast(values, tf.int32)
    brightest = tf.reduce_max(values[..., :3])
    is_seen = (brightest >= SMALLEST_BRIGHTEST) | (brightest == 0)  # Black is black at any depth.
    problem = "PNG of 16 bits that would be nearly black: its largest value is"
    with tf.control_dependencies([tf.debugging.Assert(is_seen, [problem, brightest])]):
        return _on_background(tf.cast(values // 256, tf.uint8), background)


def _in_window(values: tf.Tensor, depth: Depth) -> tf.Tensor:
    """Values of 16 bits, [height, width, 3 or 4], as float32 [height, width, 3]: low becomes 0, high 255."""
    is_opaque = tf.reduce_all(values[..., 3:] == tf.constant(65535, tf.uint16))
    problem = "PNG of 16 bits with transparent pixels, which are put on no background"
    with tf.control_dependencies([tf.debugging.Assert(is_opaque, [problem])]):
        pixels = tf.cast(values[..., :3], tf.float32)
    low, high = (tf.reduce_min(pixels), tf.reduce_max(pixels)) if isinstance(depth, str) else map(float, depth)
    # Of an image of one value nothing is left, rather than a division by 0.
    return tf.clip_by_value(tf.math.divide_no_nan((pixels - low) * 255.0, high - low), 0.0, 255.0)


def _decode_carefully(image_bytes: tf.Tensor, background: str | None) -> tf.Tensor:
    """GIF, BMP and WebP, without alpha or on a background: only of the latter does TensorFlow read alpha."""
    if background is None:
        return _decode_with_care(image_bytes)

    def webp() -> tf.Tensor:
        image = _decode_webp(image_bytes)
        return tf.cond(tf.shape(image)[2] == 4, lambda: _on_background(image, background), lambda: image[..., :3])

    is_webp = tf.strings.substr(image_bytes, 0, 1) == b"R"
    return tf.cond(is_webp, webp, lambda: _decode_with_care(image_bytes))


def _on_background(image: tf.Tensor, background: str | None) -> tf.Tensor:
    """Put an image on a color: uint8 [height, width, 4] to uint8 [height, width, 3], in whole numbers on any device.

    Without a background it has no alpha, and stays as it is.
    """
    if background is None:
        return image
    pixels, color = tf.cast(image, tf.int32), tf.constant(list(bytes.fromhex(background[1:])), tf.int32)
    alpha = pixels[..., 3:]
    return tf.cast((pixels[..., :3] * alpha + color * (255 - alpha) + 127) // 255, tf.uint8)


def _decode(image_bytes: tf.Tensor, *, channels: int) -> tf.Tensor:
    return tf.io.decode_image(image_bytes, channels=channels, expand_animations=False)


# Not inlined: JPEG and PNG then pay nothing for the branches of the other formats.
@tf.function(
    input_signature=[tf.TensorSpec([], tf.string)], autograph=False, experimental_attributes={"_noinline": True}
)
def _decode_with_care(image_bytes: tf.Tensor) -> tf.Tensor:
    first = tf.strings.substr(image_bytes, 0, 1)
    return tf.case(
        [
            (first == b"G", lambda: _decode_gif(image_bytes)),
            (first == b"B", lambda: _decode_bmp(image_bytes)),
        ],
        default=lambda: _decode_webp(image_bytes)[..., :3],
    )


def _decode_gif(image_bytes: tf.Tensor) -> tf.Tensor:
    """First frame, black where it is transparent.

    TensorFlow takes the largest frame for the size of the picture; a GIF whose screen is another one is refused.
    """
    image = _decode(image_bytes, channels=3)
    header = read_bytes(image_bytes, 6, 4)
    screen = tf.stack([little_endian(header[2:]), little_endian(header[:2])])
    covers = tf.reduce_all(tf.shape(image, out_type=tf.int64)[:2] == screen)
    with tf.control_dependencies([tf.debugging.Assert(covers, ["GIF whose frames do not cover its screen"])]):
        return tf.identity(image)


def _decode_bmp(image_bytes: tf.Tensor) -> tf.Tensor:
    """Uncompressed pixels of 24 or 32 bits, or of 8 bits with a palette (TensorFlow alone would show its indices)."""
    header = read_bytes(image_bytes, 0, 70)
    header_size = little_endian(header[14:18])
    bits = little_endian(header[28:30])
    compression = little_endian(header[30:34])
    # Masks that say what TensorFlow takes for granted: blue, green, red, and alpha or nothing.
    usual_masks = tf.reduce_all(header[54:66] == [0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0])
    is_plain = (compression == 0) | ((compression == 3) & usual_masks & (bits == 32))
    readable = (header_size >= 40) & is_plain
    # TensorFlow wants the file to end with the last row; many writers fill it up.
    width, height = little_endian(header[18:22]), tf.bitcast(tf.cast(little_endian(header[22:26]), tf.uint32), tf.int32)
    row_size = (bits // 8 * width + 3) // 4 * 4
    end = little_endian(header[10:14]) + row_size * tf.abs(tf.cast(height, tf.int64))
    with tf.control_dependencies([tf.debugging.Assert(readable, ["BMP with compressed pixels or an old header"])]):
        image = _decode(tf.strings.substr(image_bytes, tf.constant(0, tf.int64), end), channels=3)

    def with_palette() -> tf.Tensor:
        palette = tf.reshape(read_bytes(image_bytes, 14 + header_size, 1024), [256, 4])[:, 2::-1]
        color_count = (little_endian(header[10:14]) - 14 - header_size) // 4
        palette = tf.where(tf.range(256, dtype=tf.int64)[:, None] < color_count, palette, 0)
        return tf.gather(tf.cast(palette, tf.uint8), tf.cast(image[..., 0], tf.int32))

    return tf.cond(bits == 8, with_palette, lambda: image)


def _decode_webp(image_bytes: tf.Tensor) -> tf.Tensor:
    """Still image or first frame, of three channels, or of four where there is alpha.

    TensorFlow decodes an animation only to four channels, and writes beyond its buffer when it is asked to choose the
    channels itself and the header promises no alpha. So a still image lets it choose (it refuses to drop alpha), and an
    animation is marked as having alpha and asked for with four channels.
    """
    flags = read_bytes(image_bytes, 20, 1)[0]
    is_extended = tf.reduce_all(read_bytes(image_bytes, 12, 4) == list(b"VP8X"))
    is_animated = is_extended & (flags & 0x02 != 0)

    def first_frame() -> tf.Tensor:
        marked = tf.gather(tf.constant([bytes([value]) for value in range(256)]), flags | 0x10)
        before, after = tf.strings.substr(image_bytes, 0, 20), tf.strings.substr(image_bytes, 21, 2**31 - 1)
        return _decode(tf.strings.join([before, marked, after]), channels=4)

    return tf.cond(is_animated, first_frame, lambda: _decode(image_bytes, channels=0))
