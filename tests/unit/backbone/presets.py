"""Tiny networks of keras-hub with random weights, in folders as `save_to_preset` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

models = keras_hub.models
SIDE = 32

_TOWER = {"patch_size": 8, "hidden_dim": 16, "num_layers": 2, "num_heads": 2, "intermediate_dim": 32}
_TEXTS = {
    "vocabulary_size": 8,
    "embedding_dim": 16,
    "hidden_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_dim": 16,
    "max_sequence_length": 4,
}
_IMAGE = {"image_shape": (SIDE, SIDE, 3)}

FAMILIES: dict[str, Any] = {
    "ViT": lambda: models.ViTBackbone(
        **_IMAGE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, dropout_rate=0.1
    ),
    "DeiT": lambda: models.DeiTBackbone(**_IMAGE, **_TOWER),
    "DINOv2": lambda: models.DINOV2Backbone(
        **_IMAGE, **_TOWER, num_register_tokens=2, position_embedding_shape=(48, 48, 3)
    ),
    "DINOv3": lambda: models.DINOV3Backbone(**_IMAGE, **_TOWER),
    "SigLIP": lambda: models.SigLIPBackbone(
        models.SigLIPVisionEncoder(**_IMAGE, **_TOWER), models.SigLIPTextEncoder(**_TEXTS)
    ),
    "CLIP": lambda: models.CLIPBackbone(
        models.CLIPVisionEncoder(**_IMAGE, **_TOWER), models.CLIPTextEncoder(**_TEXTS), 16
    ),
    "Swin": lambda: models.SwinTransformerBackbone(
        **_IMAGE, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4, patch_size=4
    ),
    "MiT": lambda: models.MiTBackbone(
        **_IMAGE,
        layerwise_depths=[1, 2],
        num_layers=2,
        hidden_dims=[8, 16],
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
    ),
    "ResNet": lambda: models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    ),
    "EfficientNet": lambda: models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["v1", "v1"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
    ),
}


def write_preset(family: str, folder: Path) -> keras.Model:
    """Write a network of a family, and how its images are prepared, into `folder`; the network for images."""
    keras.utils.set_random_seed(0)
    backbone = FAMILIES[family]()
    tower = getattr(backbone, "vision_encoder", backbone)
    noise = np.random.default_rng(0)
    for weight in tower.trainable_weights:  # Many begin at 0 or 1, which hides where they are missing.
        if weight.name != "interpolated_position_embeddings":  # DINOv2 makes these of others when it is loaded.
            weight.assign_add(noise.normal(0.0, 0.1, weight.shape))
    backbone.save_to_preset(str(folder))
    # As for a mean of .5 and a deviation of .25, .5 and 1.
    scale = [4 / 255, 2 / 255, 1 / 255]
    keras_hub.layers.ImageConverter(
        image_size=(SIDE, SIDE), scale=scale, offset=[-2.0, -1.0, -0.5], antialias=True
    ).save_to_preset(str(folder))
    return tower
