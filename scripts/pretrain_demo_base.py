"""Pretrain the small base network that the demo ships, on letters that `scripts/glyphs.py` draws. About 3 minutes.

    python -m scripts.pretrain_demo_base                       # writes transfer/demo/glyph_base.keras
    python -m scripts.pretrain_demo_base --output /tmp/base.keras

Nothing here sees a digit. Running it again on the same machine with the pinned packages gives the same file, byte for
byte; other processors round differently, so there the weights differ slightly and the network is as good.
`python -m scripts.measure_demo_base` then measures what the features are worth on handwritten digits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from keras import layers

from scripts.glyphs import CLASSES, IMAGE_SIZE, render_many
from transfer.demo import BASE_PATH

SEED = 20
IMAGE_COUNT = 60_000
HELD_OUT_SHARE = 0.05
EPOCHS = 6
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02

BLOCKS = ((16, 2), (24, 2), (40, 1), (64, 2))
"""Channels, and stride of the first convolution, of each block."""
FEATURES = 128
"""Channels of the network's output. The head sees only their averages, so there are more of them."""


def build_base() -> keras.Model:
    """The network without its classifier: float32 0..255 [batch, 32, 32, 3] -> features [batch, 4, 4, FEATURES].

    Groups of channels are normalised, not batches: a base always runs as in inference, also where all of it is trained
    from random weights, and there a batch normalisation would keep its initial statistics and normalise nothing.
    """
    images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")(images)
    for number, (channels, strides) in enumerate(BLOCKS, start=1):
        name = f"block{number}"
        x = _normalized_convolution(x, channels, strides=strides, name=f"{name}_conv1")
        x = layers.ReLU(name=f"{name}_relu1")(x)
        y = _normalized_convolution(x, channels, name=f"{name}_conv2")
        x = layers.Add(name=f"{name}_add")([x, y])
        x = layers.ReLU(name=f"{name}_relu2")(x)
    x = _normalized_convolution(x, FEATURES, kernel_size=1, name="block4_conv3")
    x = layers.ReLU(name="block4_relu3")(x)
    return keras.Model(images, x, name="glyph_base")


def _normalized_convolution(
    x: keras.KerasTensor, channels: int, *, name: str, kernel_size: int = 3, strides: int = 1
) -> keras.KerasTensor:
    x = layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,  # the normalisation has one
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return layers.GroupNormalization(groups=8, epsilon=1e-5, name=f"{name}_norm")(x)


def pretrain(*, image_count: int, epochs: int, seed: int) -> tuple[keras.Model, float]:
    """Train the base under a classifier of letters.

    Returns the base, and the accuracy on letters that were held out.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    images, labels = render_many(image_count, seed=seed)
    held_out = max(1, round(image_count * HELD_OUT_SHARE))

    base = build_base()
    x = layers.GlobalAveragePooling2D(name="average_pooling")(base.output)
    x = layers.Dropout(0.1, name="dropout")(x)
    classifier = keras.Model(base.input, layers.Dense(len(CLASSES), name="logits")(x), name="letters")
    steps = epochs * -(-(image_count - held_out) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(
        PEAK_LEARNING_RATE / 20, steps, warmup_target=PEAK_LEARNING_RATE, warmup_steps=steps // 10
    )
    classifier.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    classifier.fit(images[held_out:], labels[held_out:], batch_size=BATCH_SIZE, epochs=epochs, verbose=2)
    _, accuracy = classifier.evaluate(images[:held_out], labels[:held_out], batch_size=BATCH_SIZE, verbose=0)
    return base, float(accuracy)


def save(base: keras.Model, path: Path) -> None:
    """Write a compressed `.keras` file whose bytes depend on the network alone.

    Keras writes the time of saving into its archive, as metadata and as the members' own times, and the memory address
    of every object that several layers share (here their dtype policy) as its identity.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(members["metadata.json"])
    del metadata["date_saved"]
    members["metadata.json"] = json.dumps(metadata).encode()
    addresses: list[str] = re.findall(r'"shared_object_id": (\d+)', members["config.json"].decode())
    for number, address in enumerate(dict.fromkeys(addresses)):
        members["config.json"] = members["config.json"].replace(address.encode(), str(number).encode())
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pretrain the demo's base network on rendered letters.")
    parser.add_argument("--output", type=Path, default=BASE_PATH, help="the file to write (default: %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGE_COUNT, help="letters to render (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="decides everything random (default: %(default)s)")
    options = parser.parse_args(arguments)

    base, accuracy = pretrain(image_count=options.images, epochs=options.epochs, seed=options.seed)
    save(base, options.output)
    data = options.output.read_bytes()
    print(f"accuracy on held-out letters, {len(CLASSES)} classes: {accuracy:.3f}")
    print(f"{options.output}: {base.count_params():,} parameters, {len(data):,} bytes")
    print(f"sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
