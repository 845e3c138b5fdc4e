import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests import images
from transfer.dataset.check import AcceptedImage, check_image
from transfer.dataset.decode import decode_image
from transfer.dataset.refusals import RejectedImage, RejectReason

PICTURE = images.picture()
FRAMES = [PICTURE, PICTURE.rotate(180), images.picture(seed=1)]
JPEG = images.encode(PICTURE, "JPEG")
PNG = images.encode(PICTURE, "PNG")
CMYK = images.encode(PICTURE.convert("CMYK"), "JPEG")
ADOBE_MARKER = b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40
TAKEN_AS_THEY_ARE = {
    "JPEG": JPEG,
    "progressive JPEG": images.encode(PICTURE, "JPEG", progressive=True),
    "gray JPEG": images.encode(PICTURE.convert("L"), "JPEG"),
    "CMYK JPEG": CMYK,
    "PNG": PNG,
    "PNG with alpha": images.encode(images.with_alpha(PICTURE), "PNG"),
    "PNG with a palette": images.encode(PICTURE.quantize(64), "PNG"),
    "PNG with a transparent palette": images.encode(PICTURE.quantize(64), "PNG", transparency=3),
    "PNG of one bit": images.encode(PICTURE.convert("1"), "PNG"),
    "PNG of 16 bits": images.png(3, 1, 16, 0, b"\0\x12\xff\x80\x00\xff\x7f"),
    "PNG, animated": images.animate(FRAMES, "PNG"),
    "GIF": images.encode(PICTURE, "GIF"),
    "GIF with transparent pixels": images.encode(images.with_alpha(PICTURE), "GIF"),
    "GIF, animated": images.animate(FRAMES, "GIF"),
    "BMP": images.encode(PICTURE, "BMP"),
    "BMP with a palette": images.encode(PICTURE.quantize(64), "BMP"),
    "WebP": images.encode(PICTURE, "WEBP"),
    "WebP with alpha": images.encode(images.with_alpha(PICTURE), "WEBP"),
    "WebP, animated": images.animate(FRAMES, "WEBP"),
}
# TensorFlow does not decode these right, Pillow does.
TAKEN_AS_PNG = {
    "TIFF": images.encode(PICTURE, "TIFF"),
    "TIFF of 16 bits": images.encode(Image.fromarray(np.arange(0, 60_000, 50, np.uint16).reshape(30, 40)), "TIFF"),
    "CMYK TIFF": images.encode(PICTURE.convert("CMYK"), "TIFF"),
    "AVIF": images.encode(PICTURE, "AVIF"),
    "JPEG 2000": images.encode(PICTURE, "JPEG2000"),
    "ICO": images.encode(PICTURE, "ICO", sizes=[(32, 32)]),
    "PNM": images.encode(PICTURE, "PPM"),
    "QOI": images.encode(PICTURE, "QOI"),
    "CMYK JPEG without Adobe's marker": CMYK.replace(ADOBE_MARKER, b""),
    "BMP of one bit": images.encode(PICTURE.convert("1"), "BMP"),
    "BMP of 16 bits": images.encode(PICTURE, "BMP")[:28] + b"\x10" + images.encode(PICTURE, "BMP")[29:],
    "GIF whose frame is smaller than its screen": images.gif((8, 8), (0, 0, 4, 4)),
    "GIF whose frame stands beside its screen": images.gif((4, 4), (2, 2, 4, 4)),
    "PNG turned by XMP": images.insert_chunk(PNG, b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
}


def check(data: bytes, *, key: str = "image", transcode: bool = False, max_pixels: int = 100_000, background=None):
    limits = {"max_pixels": max_pixels, "max_file_size_bytes": 1_000_000, "background": background}
    return check_image(data, key=key, transcode=transcode, **limits)


def refusal(data: bytes, **options) -> RejectedImage:
    result = check(data, **options)
    assert isinstance(result, RejectedImage), result
    return result


def decode_in_tf_data(accepted: list[AcceptedImage]) -> list[np.ndarray]:
    files = [image.data for image in accepted] or tf.constant([], tf.string)
    return list(tf.data.Dataset.from_tensor_slices(files).map(decode_image).as_numpy_iterator())


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("name", TAKEN_AS_THEY_ARE)
def test_what_tensorflow_decodes_right_is_taken_byte_for_byte(name, transcode):
    data = TAKEN_AS_THEY_ARE[name]
    file = Image.open(io.BytesIO(data))
    format_name = name.split()[0 if name[0] not in "pgC" else 1].rstrip(",")
    assert check(data, transcode=transcode) == AcceptedImage(data, file.width, file.height, format_name)


@pytest.mark.parametrize("name", TAKEN_AS_PNG)
def test_what_tensorflow_does_not_decode_right_is_refused_with_its_name(name):
    rejected = refusal(TAKEN_AS_PNG[name])
    assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
    assert "transcode: true" in rejected.detail
    known = ("TIFF", "AVIF", "JPEG 2000", "ICO", "PNM", "QOI", "JPEG", "BMP", "GIF", "PNG")
    assert rejected.detail.startswith(next(format_name for format_name in known if format_name in name))


@pytest.mark.parametrize("name", TAKEN_AS_PNG)
def test_transcoding_gives_the_png_of_what_pillow_shows(name):
    data = TAKEN_AS_PNG[name]
    accepted = check(data, transcode=True)
    assert isinstance(accepted, AcceptedImage)
    assert accepted.format == "PNG"
    assert accepted == check(data, transcode=True)

    pixels = decode_image(tf.constant(accepted.data)).numpy()

    assert pixels.shape == (accepted.height, accepted.width, 3)
    file = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(file) >> 8 if file.mode == "I;16" else np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(pixels[..., 0] if expected.ndim == 2 else pixels, expected)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_an_image_with_transparent_pixels_becomes_what_the_graph_makes_of_it_on_the_background(format_name):
    transparent = images.with_alpha(PICTURE)
    accepted = check(images.encode(transparent, format_name), transcode=True, background="#ffffff")
    assert accepted.format == "PNG"
    assert not Image.open(io.BytesIO(accepted.data)).has_transparency_data
    shown = decode_image(tf.constant(images.encode(transparent, "PNG")), "#ffffff")
    np.testing.assert_array_equal(decode_image(tf.constant(accepted.data)), shown)
    assert check(PNG, background="#ffffff").data == PNG


def test_a_transcoded_image_stands_upright_and_carries_no_metadata():
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    accepted = check(images.encode(PICTURE, "TIFF", exif=exif, icc_profile=b"profile"), transcode=True)
    assert isinstance(accepted, AcceptedImage)
    assert (accepted.width, accepted.height) == (PICTURE.height, PICTURE.width)
    assert Image.open(io.BytesIO(accepted.data)).info == {}


def test_transcoding_takes_the_first_page():
    accepted = check(images.encode(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), transcode=True)
    assert isinstance(accepted, AcceptedImage)
    np.testing.assert_array_equal(decode_image(tf.constant(accepted.data)), np.asarray(FRAMES[0]))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_width_and_height_are_those_of_the_upright_picture(format_name):
    accepted = check(images.encode(PICTURE, format_name, exif=b"Exif\0\0" + images.tiff_block(6)))
    assert isinstance(accepted, AcceptedImage)
    assert (accepted.width, accepted.height) == (PICTURE.height, PICTURE.width)


def test_an_empty_file_is_refused():
    assert refusal(b"").reason is RejectReason.EMPTY


def test_a_large_file_is_refused_with_both_numbers():
    rejected = refusal(JPEG + b"\0" * 1_000_000)
    assert rejected.reason is RejectReason.TOO_LARGE_FILE
    assert f"{len(JPEG) + 1_000_000:,}" in rejected.detail
    assert "1,000,000" in rejected.detail


@pytest.mark.parametrize("data", [b"x", b"<html></html>", b"%PDF-1.7", b"PK\3\4", b"\0" * 100, b"RIFF\0\0\0\0WAVE"])
def test_a_file_that_is_no_image_is_refused_by_its_content(data):
    rejected = refusal(data, key="photo.jpg")
    assert rejected.reason is RejectReason.NOT_AN_IMAGE
    assert repr(data[:12]) in rejected.detail


def test_the_content_decides_where_the_name_promises_something_else():
    accepted = check(PNG, key="photo.jpg")
    assert isinstance(accepted, AcceptedImage)
    assert accepted.format == "PNG"
    assert "TIFF (named .jpg)" in refusal(TAKEN_AS_PNG["TIFF"], key="photo.jpg").detail
    assert "named" not in refusal(TAKEN_AS_PNG["TIFF"], key="photo.tif").detail


def test_heic_is_recognized_and_the_package_that_reads_it_is_named():
    for transcode in (False, True):
        rejected = refusal(HEIC, transcode=transcode)
        assert rejected.detail.startswith("HEIC")
        assert "pillow-heif" in rejected.detail
        # With the package there, this file (a header only) is corrupt.
        assert rejected.reason in {RejectReason.UNSUPPORTED_FORMAT, RejectReason.CORRUPT}


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_an_image_of_too_many_pixels_is_refused_with_both_numbers(format_name):
    data = images.encode(PICTURE, format_name)
    assert isinstance(check(data, max_pixels=48 * 32, transcode=True), AcceptedImage)
    rejected = refusal(data, max_pixels=48 * 32 - 1, transcode=True)
    assert rejected.reason is RejectReason.PIXEL_BOMB
    assert "1,536" in rejected.detail
    assert "1,535" in rejected.detail


def jpeg_of_size(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def webp_of_size(width: int, height: int) -> bytes:
    data = images.encode(PICTURE, "WEBP", icc_profile=b"profile")
    return data[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[30:]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jpeg_of_size(65_500, 65_500), id="JPEG"),
        pytest.param(images.png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), id="PNG"),
        pytest.param(images.png(10_000, 10_000, 1, 0, b"\0"), id="PNG that Pillow warns of"),
        pytest.param(images.gif((65_535, 65_535), (0, 0, 2, 2)), id="GIF of a huge screen and a tiny frame"),
        pytest.param(webp_of_size(2**24, 2**7), id="WebP"),
        pytest.param(b"BM" + bytes(8) + struct.pack("<IIiiHH", 54, 40, 65_500, 65_500, 1, 24) + bytes(24), id="BMP"),
    ],
)
def test_a_header_that_claims_a_huge_picture_is_refused_before_decoding(data):
    assert refusal(data).reason is RejectReason.PIXEL_BOMB


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(images.png(300, 300, 8, 2, b"\0" * 900), id="PNG that claims more rows"),
        pytest.param(
            PNG[:33] + images.chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + PNG[33:],
            id="PNG with two headers",
        ),
        pytest.param(webp_of_size(4, 4), id="WebP smaller than its frame"),
        pytest.param(webp_of_size(300, 300), id="WebP larger than its frame"),
    ],
)
def test_a_header_that_lies_within_the_limit_is_corrupt(data):
    assert refusal(data).reason is RejectReason.CORRUPT


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_what_is_said_of_a_broken_header_is_the_same_every_time(format_name):
    data = images.encode(PICTURE, format_name)[:20]
    detail = refusal(data, transcode=True).detail
    assert detail.startswith(format_name.replace("WEBP", "WebP"))
    assert " at 0x" not in detail


def test_a_jpeg_that_claims_more_rows_is_taken_gray_where_it_has_none():
    accepted = check(jpeg_of_size(48, 200))
    assert isinstance(accepted, AcceptedImage)
    assert accepted.height == 200
    assert (decode_image(tf.constant(accepted.data))[-1] == 128).numpy().all()


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        pytest.param([(0, 0, 200, 200)], "GIF whose frames do not cover", id="a frame larger than the screen"),
        pytest.param(
            [(0, 0, 40, 40), (0, 0, 9_000, 1), (0, 0, 1, 9_000)],
            "its frames do not cover",
            id="frames of 81 megapixels",
        ),
        pytest.param([(0, 0, 40, 40)] * 200, "its 200 frames have 320,000 pixels", id="many frames"),
    ],
)
def test_a_gif_whose_frames_hold_more_than_its_header_says_is_not_decoded(frames, found):
    rejected = refusal(images.gif((40, 40), *frames))
    assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
    assert found in rejected.detail


def test_an_icon_that_holds_more_than_its_directory_says_is_refused():
    picture = images.encode(images.picture(400, 400), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture
    assert refusal(icon, transcode=True).reason is RejectReason.PIXEL_BOMB


def test_a_compressed_text_in_a_png_is_not_unpacked_without_limit():
    bomb = b"Comment\0\0" + zlib.compress(b"\0" * 20_000_000)
    for last in (False, True):
        assert refusal(images.insert_chunk(PNG, b"zTXt", bomb, last=last)).reason is RejectReason.CORRUPT


DAMAGED_BESIDE = {
    "PNG with a text whose checksum is wrong": PNG[:33] + b"\0\0\0\3tEXta\0b\0\0\0\0" + PNG[33:],
    "PNG with a short chunk behind the picture": images.insert_chunk(PNG, b"pHYs", b"a", last=True),
    "PNG with a short chunk": images.insert_chunk(PNG, b"pHYs", b"a"),
    "JPEG with a short JFIF header": b"\xff\xd8\xff\xe0\0\7JFIF\0" + JPEG[20:],
}


@pytest.mark.parametrize("name", DAMAGED_BESIDE)
def test_damage_beside_the_picture_is_no_reason_to_refuse_what_the_graph_decodes(name):
    data = DAMAGED_BESIDE[name]
    with pytest.raises((OSError, SyntaxError, ValueError)):
        Image.open(io.BytesIO(data)).load()
    accepted = check(data)
    assert isinstance(accepted, AcceptedImage), accepted
    assert (accepted.data, accepted.width, accepted.height) == (data, 48, 32)
    assert refusal(data, max_pixels=100).reason is RejectReason.PIXEL_BOMB
    on_white = check(data, background="#ffffff")
    assert Image.open(io.BytesIO(on_white.data)).size == (48, 32) if name.startswith("PNG") else on_white == accepted


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize(
    ("bits", "channels", "sample_format", "said"),
    [
        (16, 3, 1, "TIFF of 3 channels of 16 bits, which Pillow does not read"),
        (16, 4, 1, "TIFF of 4 channels of 16 bits, which"),
        (8, 7, 1, "TIFF of 7 channels of 8 bits, which"),
        (32, 1, 2, "TIFF of 1 channel of 32 bits, signed, and nothing says which value is white"),
        (32, 1, 3, "TIFF of 1 channel of 32 bits, float, and"),
    ],
)
def test_a_tiff_that_cannot_become_a_png_says_why_and_is_not_called_corrupt(
    bits, channels, sample_format, said, transcode
):
    rejected = refusal(
        images.tiff(4, 3, bits=bits, channels=channels, sample_format=sample_format), transcode=transcode
    )
    assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
    assert said in rejected.detail
    assert "transcode" not in rejected.detail


def test_a_jpeg_of_very_many_scans_is_not_decoded():
    data = images.encode(PICTURE, "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    rejected = refusal(data[:at] + data[at:-2] * 200 + data[-2:])
    assert rejected.reason is RejectReason.PIXEL_BOMB
    assert "scans" in rejected.detail


def test_a_transcoded_image_that_no_png_can_hold_is_refused():
    # TensorFlow's PNG library takes a million pixels a row.
    data = images.encode(Image.new("L", (1_000_001, 1)), "TIFF", compression="packbits")
    rejected = refusal(data, transcode=True, max_pixels=2_000_000)
    assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT


def test_pixels_of_32_bits_are_not_guessed():
    for pixels in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)):
        rejected = refusal(images.encode(Image.fromarray(pixels), "TIFF"), transcode=True)
        assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
        assert "32 bits" in rejected.detail


def test_broken_exif_is_no_reason_to_refuse():
    for block in (b"", b"II", b"II*\0\xff\xff\xff\xff", images.tiff_block(6)[:20], b"II*\0\x08\0\0\0\xff\xff"):
        assert isinstance(check(images.insert(JPEG, images.exif_segment(block))), AcceptedImage)
        assert isinstance(check(images.insert_chunk(PNG, b"eXIf", block)), AcceptedImage)


def test_warnings_of_pillow_do_not_leak_and_its_settings_stay():
    broken_exif = images.insert_chunk(PNG, b"eXIf", images.tiff_block(6, after=3)[:30])
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # With these 100,000,000 pixels Pillow warns; the first row is missing.
        for data in (broken_exif, images.png(10_000, 10_000, 1, 0, b"\0")):
            check(data, max_pixels=200_000_000)
    assert caught == []
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == (filters, limit)


FORMATS = {
    "JPEG": JPEG,
    "CMYK JPEG": CMYK,
    "PNG": PNG,
    "GIF": TAKEN_AS_THEY_ARE["GIF, animated"],
    "BMP": TAKEN_AS_THEY_ARE["BMP with a palette"],
    "WebP": TAKEN_AS_THEY_ARE["WebP with alpha"],
    "animated WebP": TAKEN_AS_THEY_ARE["WebP, animated"],
    "TIFF": TAKEN_AS_PNG["TIFF"],
    "AVIF": TAKEN_AS_PNG["AVIF"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_accepted_or_refused_and_what_is_accepted_decodes(name):
    data = FORMATS[name]
    lengths = {*range(1, 60), *range(60, len(data), max(1, len(data) // 40)), *range(len(data) - 20, len(data))}
    results = [check(data[:length], transcode=True) for length in sorted(lengths)]
    assert len(decode_in_tf_data([result for result in results if isinstance(result, AcceptedImage)])) < len(results)
    # Cut in the middle, no picture is whole (an animation's first frame may be).
    if name not in {"GIF", "animated WebP"}:
        assert isinstance(check(data[: len(data) // 2], transcode=True), RejectedImage)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(FORMATS)), st.integers(0, 2_000), st.integers(0, 255)),
        min_size=10,
        max_size=25,
    ),
    transcode=st.booleans(),
)
@pytest.mark.proof
def test_a_file_with_a_changed_byte_is_accepted_or_refused_and_what_is_accepted_decodes(changes, transcode):
    results = []
    for name, position, value in changes:
        data = bytearray(FORMATS[name])
        data[position % len(data)] = value
        results.append(check(bytes(data), transcode=transcode))
    accepted = [result for result in results if isinstance(result, AcceptedImage)]
    for image, pixels in zip(accepted, decode_in_tf_data(accepted), strict=True):
        assert pixels.shape == (image.height, image.width, 3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    start=st.sampled_from(
        [b"", *sorted({data[:size] for data in FORMATS.values() for size in (4, 12, 30)}), HEIC[:16]]
    ),
    tail=st.binary(max_size=60),
)
def test_random_bytes_are_refused(start, tail):
    assert isinstance(check(start + tail, transcode=True), RejectedImage)
