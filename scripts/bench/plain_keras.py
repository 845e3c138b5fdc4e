"""What people write in plain Keras, as several benches need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def images_in(folder: Path, image_size: int, *, batch_size: int, shuffle: bool) -> Any:
    """Images as the tutorials read them; `image_dataset_from_directory` prefetches by itself."""
    import keras

    size = (image_size, image_size)
    return keras.utils.image_dataset_from_directory(
        folder, image_size=size, batch_size=batch_size, shuffle=shuffle, seed=0, verbose=False
    )


def compiled_with_cosine(model: Any, *, learning_rate: float, steps: int) -> Any:
    """The model, to be trained by Adam; a constant rate would leave more noise."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps, alpha=0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    return model


def random_base(application: str, image_size: int, images: Any) -> Any:
    """A base with random weights, for want of pretrained ones, whose BatchNorms have seen some of the images.

    Without that its activations would have no sane scale, and no head could be trained on them. `images`: batches of
    images and labels, shuffled.
    """
    import keras

    keras.utils.set_random_seed(0)
    shape = (image_size, image_size, 3)
    network = getattr(keras.applications, application)(weights=None, include_top=False, input_shape=shape)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # The statistics become exactly those of one batch.
    for batch in images.rebatch(64).take(1):
        network(batch[0] / 127.5 - 1.0, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network
