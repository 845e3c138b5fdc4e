"""A small network with attention, as people build them from Keras's layers: what LoRA is for."""

from pathlib import Path

import keras

from transfer.config import Config

WIDTH = 8


def attention_network(size: int = 32) -> keras.Model:
    """Patches, two transformer blocks, and the mean over the patches: vectors of 8 numbers. Weights are of a seed."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images = keras.Input((size, size, 3))
    x = layers.Conv2D(WIDTH, 8, strides=8, name="patches")(images)
    x = layers.Reshape((-1, WIDTH), name="tokens")(x)
    for number in range(2):
        y = layers.LayerNormalization(name=f"block_{number}_norm_1")(x)
        y = layers.MultiHeadAttention(2, 3, name=f"block_{number}_mixing")(y, y)
        x = layers.Add(name=f"block_{number}_add_1")([x, y])
        y = layers.LayerNormalization(name=f"block_{number}_norm_2")(x)
        y = layers.Dense(2 * WIDTH, activation="gelu", name=f"block_{number}_wide")(y)
        y = layers.Dense(WIDTH, name=f"block_{number}_narrow")(y)
        x = layers.Add(name=f"block_{number}_add_2")([x, y])
    return keras.Model(images, layers.GlobalAveragePooling1D(name="mean")(x), name="attention")


def on_attention(config: Config, folder: Path, phases: list[dict]) -> Config:
    """The configuration with such a network as its base, saved below `folder`, and these phases."""
    base = folder / "attention.keras"
    if not base.exists():
        attention_network().save(base)
    changes = {"base": {"model": str(base), "image_size": 32, "preprocessing": "-1..1"}, "phases": phases}
    return Config.model_validate({**config.model_dump(), **changes})
