"""What a careful person writes: each image through the network once, then a head on the features.

    python -m scripts.bench.seconds_script FOLDER IMAGE_SIZE EPOCHS

It trains as `seconds.py` has `transfer train` do, and prints the accuracy on a fifth of the images.
"""

import sys

import keras
import numpy as np


def main(folder: str, image_size: int, epochs: int) -> None:
    images = keras.utils.image_dataset_from_directory(
        folder, image_size=(image_size, image_size), batch_size=32, shuffle=False, verbose=False
    )
    base = keras.applications.MobileNetV2(
        include_top=False, pooling="avg", weights=None, input_shape=(image_size, image_size, 3)
    )
    features = base.predict(images.map(lambda pixels, _: pixels / 127.5 - 1.0), verbose=0)
    labels = np.concatenate([label for _, label in images])
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[len(order) // 5 :], order[: len(order) // 5]
    head = keras.Sequential([keras.layers.Dense(len(images.class_names))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    head.fit(features[train], labels[train], batch_size=32, epochs=epochs, verbose=0)
    print(head.evaluate(features[test], labels[test], verbose=0)[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
