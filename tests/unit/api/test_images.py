"""Images as a Python program has them: what a model sees of them."""

import numpy as np
import pytest
from PIL import Image

from transfer.api.images import predictions
from transfer.config import DatasetConfig, ImageInput, StorageConfig
from transfer.errors import DatasetError

TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def seen(image, depth):
    """What a model is given for an image, [64, 64, 3]."""
    found = []

    def answer(batches):
        for _, pixels in batches:
            found.extend(pixels)
            yield np.full((len(pixels), 2), 0.5, np.float32)

    predictions(
        image,
        classes=["a", "b"],
        image_input=ImageInput(64, 64, depth=depth),
        limits=DatasetConfig(source="images"),
        storage=StorageConfig(uri="/nowhere"),
        answer=answer,
    )
    return found[0]


def test_an_image_of_pillow_keeps_its_16_bits():
    pixels = seen(Image.fromarray(TWELVE_BITS), (0, 4095))
    np.testing.assert_allclose(pixels[..., 0], TWELVE_BITS * (255 / 4095), atol=1e-3)


@pytest.mark.parametrize("mode", [np.int32, np.float32])
def test_an_image_of_32_bits_is_refused_and_not_cut_off_at_white(mode):
    with pytest.raises(DatasetError, match=r"Image #0 has pixels of 32 bits"):
        seen(Image.fromarray(TWELVE_BITS.astype(mode)), "scale")
