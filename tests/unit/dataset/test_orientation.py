import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests import images
from transfer.dataset.decode import decode_image
from transfer.dataset.orientation import _may_be_turned, apply_orientation, exif_orientation, is_plain_jpeg

ORIENTATIONS = range(1, 9)
JPEG = images.encode(images.picture(), "JPEG")
PNG = images.encode(images.picture(), "PNG")

in_graph = tf.function(exif_orientation, input_signature=[tf.TensorSpec([], tf.string)])


def orientation_of(image_bytes: bytes) -> int:
    return int(in_graph(image_bytes))


def pillow_orientation(image_bytes: bytes) -> int:
    orientation = Image.open(io.BytesIO(image_bytes)).getexif().get(images.ORIENTATION_TAG, 1)
    return orientation if orientation in ORIENTATIONS else 1


def jpeg_with(block: bytes, **options) -> bytes:
    return images.insert(JPEG, images.exif_segment(block), **options)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_pixels_is_exactly_what_pillow_does(orientation):
    picture = images.picture(7, 5)
    picture.getexif()[images.ORIENTATION_TAG] = orientation

    turned = apply_orientation(tf.constant(np.asarray(picture)), tf.constant(orientation))

    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("orientation", [-1, 0, 9, 2**31 - 1])
def test_a_number_that_is_no_orientation_turns_nothing(orientation):
    picture = np.asarray(images.picture(7, 5))
    np.testing.assert_array_equal(apply_orientation(tf.constant(picture), tf.constant(orientation)), picture)


# The two libraries round JPEG differently: up to 4 of 255 in a smooth picture.
@pytest.mark.parametrize(("format_name", "tolerance"), [("PNG", 0), ("WEBP", 0), ("JPEG", 4)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_decoded_file_stands_as_pillow_shows_it(format_name, tolerance, orientation):
    image_bytes = images.encode(images.picture(), format_name, exif=b"Exif\0\0" + images.tiff_block(orientation))

    pixels = decode_image(tf.constant(image_bytes)).numpy()

    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image_bytes))))
    assert orientation_of(image_bytes) == orientation
    assert pixels.shape == shown.shape
    assert np.abs(pixels.astype(int) - shown).max() <= tolerance


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize(("before", "after", "gap"), [(0, 0, 0), (3, 0, 5), (0, 4, 1), (17, 40, 900)])
def test_the_entry_is_found_in_either_byte_order_any_integer_type_and_anywhere(order, kind, before, after, gap):
    block = images.tiff_block(6, order=order, kind=kind, before=before, after=after, gap=gap)
    assert pillow_orientation(jpeg_with(block)) == 6
    assert orientation_of(jpeg_with(block)) == 6


COMMENT = images.segment(0xFE, b"made for a test, Exif\0\0 in words only")
COLOR_PROFILE = images.segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"\xff\xda\xff\xd9" * 16_000)
PHOTOSHOP = images.segment(0xED, b"Photoshop 3.0\0" + b"\xff\xe1" * 300)
XMP = images.segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x/>" * 50)
TABLE = images.segment(0xDB, b"\0" + bytes([1] * 64))
UPRIGHT = images.exif_segment(images.tiff_block(1))
TURNED = images.exif_segment(images.tiff_block(8))


@pytest.mark.parametrize("after_jfif", [True, False])
@pytest.mark.parametrize(
    "before",
    [
        pytest.param([], id="nothing"),
        pytest.param([COMMENT], id="a comment"),
        pytest.param([COLOR_PROFILE] * 3, id="a large color profile"),
        pytest.param([PHOTOSHOP, XMP], id="Photoshop and XMP"),
        pytest.param([TABLE], id="a table"),
        pytest.param([b"\xff\xff\xff"], id="fill bytes"),
    ],
)
def test_the_exif_segment_of_a_jpeg_is_found_behind_others(before, after_jfif):
    image_bytes = images.insert(JPEG, *before, TURNED, after_jfif=after_jfif)
    assert pillow_orientation(image_bytes) == 8
    assert orientation_of(image_bytes) == 8


def test_the_first_of_two_exif_segments_counts():
    assert orientation_of(images.insert(JPEG, UPRIGHT, TURNED)) == 1
    assert orientation_of(images.insert(JPEG, TURNED, UPRIGHT)) == 8


@pytest.mark.parametrize(
    "image_bytes",
    [
        pytest.param(JPEG, id="no EXIF"),
        pytest.param(JPEG + TURNED, id="behind the image"),
        pytest.param(images.insert(JPEG, images.segment(0xFE, TURNED)), id="inside a comment"),
        pytest.param(images.insert(JPEG, images.segment(0xE5, b"Exif\0\0" + images.tiff_block(8))), id="another APP"),
        pytest.param(PNG + images.chunk(b"eXIf", images.tiff_block(8)), id="behind a PNG's end"),
        pytest.param(images.insert_chunk(PNG, b"tEXt", b"eXIf\0" + images.tiff_block(8)), id="in a PNG's text"),
    ],
)
def test_orientation_elsewhere_is_not_the_images_own(image_bytes):
    assert pillow_orientation(image_bytes) == 1
    assert orientation_of(image_bytes) == 1


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_a_png_chunk_is_found_before_and_behind_the_pixels(last, prefix):
    image_bytes = images.insert_chunk(PNG, b"eXIf", prefix + images.tiff_block(5, order=">"), last=last)
    assert pillow_orientation(image_bytes) == 5
    assert orientation_of(image_bytes) == 5


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("odd", [False, True])
def test_a_webp_chunk_is_found_behind_a_profile_of_any_length(prefix, odd):
    profile = b"p" * (101 if odd else 100)
    image_bytes = images.encode(images.picture(), "WEBP", icc_profile=profile, exif=prefix + images.tiff_block(7))
    assert pillow_orientation(image_bytes) == 7
    assert orientation_of(image_bytes) == 7


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"", id="empty"),
        pytest.param(images.tiff_block(0), id="zero"),
        pytest.param(images.tiff_block(9), id="nine"),
        pytest.param(images.tiff_block(6, kind=2), id="text"),
        pytest.param(images.tiff_block(6, count=2), id="two values"),
        pytest.param(b"XX" + images.tiff_block(6)[2:], id="no byte order"),
        pytest.param(b"II\0\0" + images.tiff_block(6)[4:], id="no TIFF"),
        pytest.param(b"II*\0\xff\xff\xff\xff", id="directory beyond the end"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff", id="entries beyond the end"),
    ],
)
def test_a_broken_block_counts_as_none(block):
    assert orientation_of(jpeg_with(block)) == 1


def test_a_block_cut_anywhere_gives_its_orientation_or_none():
    block = images.tiff_block(6, before=2, after=2)
    found = [orientation_of(jpeg_with(block[:length])) for length in range(len(block))]
    # Header, count, two entries and the whole third: from there on it is there.
    assert found == [1] * 46 + [6] * (len(block) - 46)


@pytest.mark.parametrize(
    "image_bytes",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xd8", id="start only"),
        pytest.param(b"\xff\xd8\xff\xe1", id="cut in a segment"),
        pytest.param(b"\xff\xd8" + b"\xff\xe2\0\0" * 30_000 + b"Exif\0\0", id="segments without length"),
        pytest.param(b"\xff\xd8" + b"\xff" * 100_000 + b"Exif\0\0", id="fill bytes only"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\xff" * 50 + b"eXIf", id="chunk of 4 GB"),
        pytest.param(b"RIFF\0\0\0\0WEBP" + b"EXIE\0\0\0\0" * 1_000 + b"EXIF", id="empty chunks"),
        pytest.param(b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff", id="length beyond the end"),
        pytest.param(b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffeXIfExif\0\0", id="PNG length beyond the end"),
    ],
)
def test_hostile_headers_end_in_no_orientation(image_bytes):
    assert orientation_of(image_bytes) == 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    start=st.sampled_from(
        [b"\xff\xd8\xff\xe1\0\x40Exif\0\0", JPEG[:20], b"\x89PNG\r\n\x1a\n\0\0\0\x20eXIf", b"RIFF    WEBPEXIF"]
    ),
    tail=st.binary(max_size=80),
)
def test_random_bytes_never_raise(start, tail):
    assert orientation_of(start + tail) in ORIENTATIONS


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    orientation=st.integers(0, 255),
    order=st.sampled_from("<>"),
    kind=st.sampled_from([1, 3, 4, 8, 9]),
    before=st.integers(0, 18),
    after=st.integers(0, 5),
    gap=st.integers(0, 30),
    segments=st.lists(st.sampled_from([COMMENT, PHOTOSHOP, XMP, TABLE]), max_size=3),
)
def test_every_well_formed_block_is_read_as_pillow_reads_it(orientation, order, kind, before, after, gap, segments):
    block = images.tiff_block(orientation, order=order, kind=kind, before=before, after=after, gap=gap)
    image_bytes = images.insert(JPEG, *segments, images.exif_segment(block))
    assert orientation_of(image_bytes) == pillow_orientation(image_bytes)


def test_a_long_png_is_walked_to_its_end():
    text = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", 0)
    image_bytes = PNG[:33] + text * 2_000 + images.chunk(b"eXIf", images.tiff_block(3)) + PNG[33:]
    assert orientation_of(image_bytes) == 3


@settings(deadline=None)
@given(st.binary(max_size=1200))
@pytest.mark.proof
def test_what_may_be_turned_is_the_same_in_python_and_in_the_graph(noise):
    files = [JPEG, PNG, jpeg_with(images.tiff_block(6)), b"", noise, JPEG[:22] + noise, JPEG[:300] + noise]
    # One byte changed in the header that both look at.
    files += [JPEG[:place] + bytes([JPEG[place] ^ 1]) + JPEG[place + 1 :] for place in range(24)]
    # EXIF at the edge of what both look at.
    files += [JPEG[:22].ljust(place, b"x") + b"Exif\0\0" for place in (1017, 1018, 1019)]
    assert is_plain_jpeg(JPEG)
    assert [is_plain_jpeg(file) for file in files] == [not _may_be_turned(tf.constant(file)) for file in files]
