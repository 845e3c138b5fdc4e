"""EXIF orientation inside the TensorFlow graph: the same ops in training, evaluation and the exported model.

`exif_orientation` reads the tag from a JPEG's APP1 segment, a PNG's eXIf chunk or a WebP's EXIF chunk;
`apply_orientation` turns the pixels as Pillow's `ImageOps.exif_transpose` does. A broken EXIF block counts as none.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Each step moves forward in the file, so a walk ends anyway. The bounds limit its length for hostile files.
# 1,000 JPEG segments are 64 MB of metadata; 100,000 PNG chunks of libpng's usual 8 KiB are 800 MB.
_MAX_SEGMENTS = 1_000
_MAX_CHUNKS = 100_000
# A JPEG that starts with its tables has its first scan within this many bytes: 4 tables of each kind take under 1 KiB.
_PLAIN_HEADER_BYTES = 1_024
_JFIF_START = b"\xff\xd8\xff\xe0\0\x10"
_TABLES = b"\xff\xdb"
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112

Block = tuple[tf.Tensor, tf.Tensor]  # start and length in bytes, int64 []; length 0: there is none


@tf.autograph.experimental.do_not_convert
def exif_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Orientation of an encoded image, string [], as int32 [] from 1 to 8; 1 if it is missing or broken.

    Never raises, whatever the bytes are. 1 is upright; 6 is the usual portrait photo, to be turned clockwise.
    """
    return tf.cond(_may_be_turned(image_bytes), lambda: _find_orientation(image_bytes), lambda: tf.constant(1))


@tf.autograph.experimental.do_not_convert
def apply_orientation(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an image upright: [height, width, channels] of any type and int32 [] in 1..8 to [height', width', channels].

    Orientations 5 to 8 swap height and width. Any other number leaves the image as it is.
    """
    is_turned = (orientation > 1) & (orientation <= 8)
    turned = tf.cond(is_turned, lambda: _turn(image, orientation), lambda: image)
    turned.set_shape([None, None, image.shape[-1]])
    return turned


def read_bytes(image_bytes: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """`count` bytes from `position` on as int64 [count]; zeros beyond the end, so that no position is an error."""
    start = tf.minimum(tf.cast(position, tf.int64), _size(image_bytes))
    piece = tf.strings.substr(image_bytes, start, tf.constant(count, tf.int64))
    return tf.cast(tf.io.decode_raw(piece, tf.uint8, fixed_length=count), tf.int64)


def _size(text: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(text), tf.int64)


def little_endian(octets: tf.Tensor) -> tf.Tensor:
    """Unsigned number from its bytes, least significant first: int64 [..., n] to int64 [...], n at most 7."""
    return tf.reduce_sum(octets * [256**place for place in range(octets.shape[-1])], axis=-1)


def _big_endian(octets: tf.Tensor) -> tf.Tensor:
    return little_endian(tf.reverse(octets, [-1]))


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    # Pillow's names: 2 mirror, 3 half turn, 4 flip, 5 transpose, 6 quarter right, 7 transverse, 8 quarter left.
    image = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    return tf.reverse(image, tf.boolean_mask([0, 1], tf.stack([upside_down, mirrored])))


def _may_be_turned(image_bytes: tf.Tensor) -> tf.Tensor:
    """False for a JPEG that obviously has no EXIF, which a few small ops find out for most images of most datasets.

    In such a file the tables follow directly after a JFIF header of the usual 16 bytes.
    """
    head = tf.strings.substr(image_bytes, 0, _PLAIN_HEADER_BYTES)
    octets = tf.io.decode_raw(tf.strings.substr(head, 0, 22), tf.uint8, fixed_length=22)
    markers_and_length = tf.gather(octets, [0, 1, 2, 3, 4, 5, 20, 21])
    is_plain = tf.reduce_all(markers_and_length == list(_JFIF_START + _TABLES))
    return ~is_plain | _contains(head, _EXIF)


def is_plain_jpeg(image_bytes: bytes) -> bool:
    """The negation of `_may_be_turned` in Python, for bytes that are not in a tensor: such a JPEG is upright."""
    head = image_bytes[:_PLAIN_HEADER_BYTES]
    goes_straight = (head[:6], head[20:22]) == (_JFIF_START, _TABLES)
    return goes_straight and _EXIF not in head


def _contains(text: tf.Tensor, part: bytes) -> tf.Tensor:
    # Splitting is TensorFlow's fastest search: regular expressions took three times as long, and read only UTF-8.
    pieces = tf.raw_ops.StringSplitV2(input=[text], sep=part, maxsplit=1).values
    return tf.size(pieces) > 1


# Not inlined: otherwise the executor visits these hundred ops also for images that skip them.
@tf.function(
    input_signature=[tf.TensorSpec([], tf.string)], autograph=False, experimental_attributes={"_noinline": True}
)
def _find_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    magic = tf.strings.substr(image_bytes, 0, 4)
    start, length = tf.case(
        [
            (tf.strings.substr(magic, 0, 2) == b"\xff\xd8", lambda: _jpeg_exif(image_bytes)),
            (magic == b"\x89PNG", lambda: _png_exif(image_bytes)),
            (magic == b"RIFF", lambda: _webp_exif(image_bytes)),
        ],
        default=_nothing,
    )
    return tf.cond(length > 0, lambda: _tiff_orientation(image_bytes, start, length), lambda: tf.constant(1))


def _nothing() -> Block:
    return tf.constant(0, tf.int64), tf.constant(0, tf.int64)


def _jpeg_exif(image_bytes: tf.Tensor) -> Block:
    """The TIFF block in the first EXIF segment before the first scan."""

    def is_exif(window: tf.Tensor) -> tf.Tensor:
        return (window[1] == 0xE1) & tf.reduce_all(window[4:] == list(_EXIF))

    def goes_on(_: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        # Below 0xC0 and from 0xD0 to 0xDA stand markers without a length, and the scan, where metadata ends.
        is_segment = (window[1] >= 0xC0) & ((window[1] < 0xD0) | (window[1] > 0xDA))
        return (window[0] == 0xFF) & is_segment & ~is_exif(window)

    def step(position: tf.Tensor, window: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_padding = window[1] == 0xFF
        position += tf.where(is_padding, tf.constant(1, tf.int64), 2 + tf.maximum(_big_endian(window[2:4]), 2))
        return position, read_bytes(image_bytes, position, 10)

    first = tf.constant(2, tf.int64)
    position, window = tf.while_loop(
        goes_on, step, [first, read_bytes(image_bytes, first, 10)], maximum_iterations=_MAX_SEGMENTS
    )
    found = (window[0] == 0xFF) & is_exif(window)
    return position + 10, tf.where(found, _big_endian(window[2:4]) - 8, 0)


def _png_exif(image_bytes: tf.Tensor) -> Block:
    # A chunk: length, name, data, checksum.
    return _chunk(
        image_bytes, b"eXIf", first=8, name_at=4, length_of=lambda w: _big_endian(w[:4]), around=12, last=b"IEND"
    )


def _webp_exif(image_bytes: tf.Tensor) -> Block:
    # A chunk: name, length, data, and a byte to fill up an odd length. Zeros stand for the file's end.
    return _chunk(
        image_bytes, b"EXIF", first=12, name_at=0, length_of=lambda w: little_endian(w[4:]), around=8, last=bytes(4)
    )


def _chunk(
    image_bytes: tf.Tensor,
    name: bytes,
    *,
    first: int,
    name_at: int,
    length_of: Callable[[tf.Tensor], tf.Tensor],
    around: int,
    last: bytes,
) -> Block:
    """The TIFF block in the first chunk with that name before the chunk named `last`.

    `around` is what a chunk has beside its data, in bytes.
    """

    def is_named(window: tf.Tensor, name: bytes = name) -> tf.Tensor:
        return tf.reduce_all(window[name_at : name_at + 4] == list(name))

    def goes_on(position: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        return (position < size) & ~is_named(window) & ~is_named(window, last)

    def step(position: tf.Tensor, window: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        length = length_of(window)
        position += around + length + (length % 2 if around == 8 else 0)
        return position, read_bytes(image_bytes, position, 8)

    def walk() -> Block:
        start = tf.constant(first, tf.int64)
        position, window = tf.while_loop(
            goes_on, step, [start, read_bytes(image_bytes, start, 8)], maximum_iterations=_MAX_CHUNKS
        )
        # Some writers also write JPEG's prefix.
        has_prefix = tf.reduce_all(read_bytes(image_bytes, position + 8, 6) == list(_EXIF))
        prefix = tf.where(has_prefix, tf.constant(6, tf.int64), 0)
        return position + 8 + prefix, tf.where(is_named(window), length_of(window) - prefix, 0)

    size = _size(image_bytes)
    found: Block = tf.cond(_contains(image_bytes, name), walk, _nothing)
    return found


def _places(*values: int) -> tf.Tensor:
    return tf.constant(values, tf.int64)


def _tiff_orientation(image_bytes: tf.Tensor, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Orientation in the first directory (IFD0) of the TIFF block at that place, 1 if it has no valid value."""
    block = tf.strings.substr(image_bytes, tf.minimum(start, _size(image_bytes)), length)
    header = read_bytes(block, 0, 8)
    is_little = tf.reduce_all(header[:2] == list(b"II"))
    is_big = tf.reduce_all(header[:2] == list(b"MM"))
    # Written out: Grappler takes a reversed slice of a constant for a shape, and complains on stderr.
    places_of_2 = tf.where(is_little, _places(1, 256), _places(256, 1))
    places_of_4 = tf.where(is_little, _places(1, 256, 256**2, 256**3), _places(256**3, 256**2, 256, 1))

    directory = tf.reduce_sum(header[4:8] * places_of_4)
    entry_count = tf.reduce_sum(read_bytes(block, directory, 2) * places_of_2)
    entries_at = tf.minimum(directory + 2, _size(block))
    # An entry: tag, type, count, value, of 2, 2, 4 and 4 bytes. A cut-off directory is read as far as it goes.
    octets = tf.cast(tf.io.decode_raw(tf.strings.substr(block, entries_at, entry_count * 12), tf.uint8), tf.int64)
    entries = tf.reshape(octets[: tf.size(octets) // 12 * 12], [-1, 12])
    matches = entries[tf.reduce_sum(entries[:, :2] * places_of_2, axis=1) == _ORIENTATION_TAG]
    # If the tag occurs twice, the last one counts, as in Pillow.
    entry = tf.concat([tf.zeros([1, 12], tf.int64), matches], axis=0)[-1]

    kind = tf.reduce_sum(entry[2:4] * places_of_2)
    is_single = tf.reduce_sum(entry[4:8] * places_of_4) == 1
    # TIFF's integer types: 3 and 8 have two bytes, 4 and 9 four. The standard wants 3; Pillow reads these.
    value = tf.case(
        [
            ((kind == 3) | (kind == 8), lambda: tf.reduce_sum(entry[8:10] * places_of_2)),
            ((kind == 4) | (kind == 9), lambda: tf.reduce_sum(entry[8:12] * places_of_4)),
        ],
        default=lambda: tf.constant(0, tf.int64),
    )
    is_tiff = (is_little | is_big) & tf.reduce_any(header[2:4] == 42)
    return tf.where(is_tiff & is_single & (value >= 1) & (value <= 8), tf.cast(value, tf.int32), 1)
