"""Images of 16 bits a channel: taken with all of their levels, or refused with the reason."""

import io
import re

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image

from tests import images
from transfer.config import DatasetConfig
from transfer.dataset.check import AcceptedImage, check_image
from transfer.dataset.decode import decode_image
from transfer.dataset.refusals import RejectReason

TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
DARK = images.deep_png(TWELVE_BITS)
DEPTHS = ["reject", "scale", (0, 4095)]


def check(data, depth="reject", *, transcode=False, background=None):
    return check_image(
        data,
        key="image",
        max_pixels=100_000,
        max_file_size_bytes=1_000_000,
        transcode=transcode,
        background=background,
        depth=depth,
    )


def tiff_of(values, *, sample_format=1):
    height, width = values.shape
    kind = {1: "<u2", 2: "<i2"}[sample_format]
    return images.tiff(
        width, height, bits=16, channels=1, sample_format=sample_format, pixels=values.astype(kind).tobytes()
    )


def values_of(accepted):
    assert isinstance(accepted, AcceptedImage), accepted
    return np.asarray(Image.open(io.BytesIO(accepted.data)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PNG, damaged", "PNG, color"])
def test_an_image_that_would_be_nearly_black_is_refused_with_what_helps(kind):
    color = images.deep_png(np.stack([TWELVE_BITS] * 3, axis=-1))
    damaged = images.insert_chunk(DARK, b"pHYs", b"a")
    data = {"PNG": DARK, "TIFF": tiff_of(TWELVE_BITS), "PNG, damaged": damaged, "PNG, color": color}[kind]
    rejected = check(data, transcode=kind == "TIFF")
    assert rejected.reason is RejectReason.TOO_DARK
    assert "largest value is 4,095" in rejected.detail
    # Both remedies are as they stand in a configuration, and help.
    remedies = [yaml.safe_load(found) for found in re.findall("`dataset.depth: ([^`]+)`", rejected.detail)]
    assert remedies == ["scale", {"window": [0, 4095]}]
    for remedy in remedies:
        depth = DatasetConfig(source="images", depth=remedy).image_depth
        accepted = check(data, depth, transcode=kind == "TIFF")
        assert len(np.unique(decode_image(tf.constant(accepted.data), depth=depth))) == 4096


def test_a_png_of_16_bits_is_stored_as_it_is_whatever_the_depth():
    black = images.deep_png(np.zeros((64, 64), np.uint16))
    bright = images.deep_png(TWELVE_BITS + 1)
    for depth in DEPTHS:
        for data in (black, bright):
            assert check(data, depth) == AcceptedImage(data, 64, 64, "PNG")
    assert check(DARK, "scale", background="#ffffff").data == DARK


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_keeps_all_of_its_values(order):
    values = (TWELVE_BITS + 1).astype(f"{order}u2")
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    mode = {"<": "I;16", ">": "I;16B"}[order]
    picture = Image.frombytes(mode, (64, 64), values.tobytes())
    found = [check(images.encode(picture, "TIFF", exif=exif), depth, transcode=True) for depth in DEPTHS]
    assert found[0] == found[1] == found[2]
    np.testing.assert_array_equal(values_of(found[0]), np.rot90(values, -1))


def test_a_signed_tiff_is_taken_where_no_value_is_below_0():
    signed = tiff_of(TWELVE_BITS + 1, sample_format=2)
    np.testing.assert_array_equal(values_of(check(signed, transcode=True)), TWELVE_BITS + 1)
    assert "transcode: true" in check(signed).detail
    below = check(tiff_of(TWELVE_BITS.astype(np.int16) - 1024, sample_format=2), "scale", transcode=True)
    assert below.reason is RejectReason.UNSUPPORTED_FORMAT
    assert "values below 0 (the smallest is -1,024)" in below.detail


def test_transparent_pixels_and_a_background_cost_the_lower_bits_or_are_refused():
    colors = np.random.default_rng(0).integers(0, 65536, (8, 8, 4))
    colors[..., 3] = 65535
    opaque = images.deep_png(colors)
    assert check(opaque, "scale", background="#ffffff").data == opaque
    colors[0, 0, 3] = 0
    transparent = images.deep_png(colors)
    assert values_of(check(transparent, background="#ffffff")).dtype == np.uint8
    for depth in ("scale", (0, 4095)):
        assert check(transparent, depth).data == transparent
        rejected = check(transparent, depth, background="#ffffff")
        assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
        assert "transparent pixels" in rejected.detail


def test_pillow_must_have_the_same_16_bits(monkeypatch):
    monkeypatch.setattr("transfer.dataset.check.upright", lambda image: Image.fromarray(np.asarray(image) ^ 1))
    rejected = check(DARK, "scale")
    assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
    assert "other values than in Pillow" in rejected.detail


def test_colors_of_16_bits_that_only_pillow_reads_right_do_not_become_8_bits_without_a_word():
    color = images.deep_png(np.stack([TWELVE_BITS * 16] * 3, axis=-1))
    turned = images.insert_chunk(color, b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    rejected = check(turned, "scale", transcode=True)
    assert rejected.reason is RejectReason.UNSUPPORTED_FORMAT
    assert "of which Pillow reads 8" in rejected.detail
