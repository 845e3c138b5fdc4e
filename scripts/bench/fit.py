"""How an image should be fitted to a network's square: the accuracy of each way, as tables of Markdown.

    python -m scripts.bench.fit ../shared/data/four_styles/* --samples ../shared/data/imagenet_samples

On EfficientNetLite0 with its ImageNet weights. A set of class folders: a logistic head on the frozen network's pooled
features, trained on a half of the images and tested on the other, in five random splits. The samples, one image each of
100 classes of ImageNet: the network's own answers. In brackets the difference from the first row, paired by split or
image, with its standard error. The error over splits is that of one and the same images.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Of small matrices: beside other work on the cores, several threads took over two minutes for 2 s of one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.tables import markdown
from transfer.backbone.efficientnet_lite import EfficientNetLite0
from transfer.config import ImageInput
from transfer.dataset.decode import load_image

WAYS: tuple[dict[str, Any], ...] = (
    {"fit": "stretch"},
    {"fit": "crop"},
    {"fit": "crop", "crop_share": 0.875},
    {"fit": "pad"},
)
SPLITS = 5
IMAGES = ("*.jpg", "*.JPG", "*.jpeg", "*.png")
# The classes of the samples among those of ImageNet; the names of their files are in the same order.
SAMPLED_CLASSES = [
    *(8, 15, 22, 35, 41, 46, 48, 57, 72, 77, 78, 79, 88, 100, 102, 105, 108, 111, 127, 128, 132, 146, 156, 162, 171),
    *(182, 186, 187, 189, 205, 209, 219, 256, 267, 268, 271, 282, 290, 296, 308, 328, 339, 344, 352, 369, 370, 382),
    *(385, 403, 408, 410, 411, 413, 416, 426, 458, 459, 467, 469, 470, 474, 477, 480, 500, 501, 537, 551, 569, 591),
    *(595, 602, 604, 614, 617, 636, 664, 668, 718, 720, 732, 735, 741, 744, 756, 768, 771, 775, 782, 784, 833, 836),
    *(851, 881, 887, 891, 906, 914, 916, 927, 967),
]


def main() -> None:
    options = arguments()
    sets = {folder.name: images_in(folder, "*/") for folder in options.sets}
    samples = images_in(options.samples, "") if options.samples else ()
    for size in options.size:
        network = pooled_and_logits(size)
        rows: dict[str, dict[str, np.ndarray]] = {}
        for way, antialias in product(WAYS, (False, True)):
            image_input = ImageInput(size, size, antialias=antialias, **way)
            scores = {name: of_heads(network, files, simplest(image_input, files)) for name, files in sets.items()}
            if samples:
                scores["samples"] = of_samples(network, samples, image_input)
            rows[image_input.title] = scores
        print(table(rows), flush=True)


def images_in(folder: Path, below: str) -> tuple[Path, ...]:
    return tuple(sorted(path for pattern in IMAGES for path in folder.glob(below + pattern)))


def simplest(image_input: ImageInput, files: Sequence[Path]) -> ImageInput:
    """The same for these files, stretched where they are squares that lose nothing: their features are made once."""
    square = all(len(set(Image.open(file).size)) == 1 for file in files)
    return replace(image_input, fit="stretch") if square and image_input.crop_share == 1 else image_input


def pooled_and_logits(size: int) -> keras.Model:
    whole = EfficientNetLite0(input_shape=(size, size, 3))
    return keras.Model(whole.inputs[0], [whole.get_layer("avg_pool").output, whole.outputs[0]])


@functools.cache
def of_heads(network: keras.Model, files: tuple[Path, ...], image_input: ImageInput) -> np.ndarray:
    """The accuracy of a head in each split."""
    features, _ = network.predict(batches(files, image_input), verbose=0)
    labels = np.array([file.parent.name for file in files])
    accuracies = []
    for train, test in StratifiedShuffleSplit(SPLITS, test_size=0.5, random_state=0).split(features, labels):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        accuracies.append(head.fit(features[train], labels[train]).score(features[test], labels[test]))
    return np.array(accuracies)


def of_samples(network: keras.Model, files: Sequence[Path], image_input: ImageInput) -> np.ndarray:
    """Of each sample, whether the network's own top is right."""
    _, logits = network.predict(batches(files, image_input), verbose=0)
    return (logits.argmax(1) == SAMPLED_CLASSES).astype(float)


def batches(files: Sequence[Path], image_input: ImageInput) -> tf.data.Dataset:
    encoded = tf.data.Dataset.from_tensor_slices([str(file) for file in files]).map(tf.io.read_file)
    return encoded.map(lambda content: load_image(content, image_input), num_parallel_calls=2).batch(32).prefetch(2)


def table(rows: dict[str, dict[str, np.ndarray]]) -> str:
    """A row each way, a column each set, and the mean of the differences over the sets with heads."""
    first = next(iter(rows.values()))
    lines = []
    for title, scores in rows.items():
        differences = {name: scores[name] - first[name] for name in scores}
        cells = [f"{scores[name].mean():.3f} ({with_error(differences[name])})" for name in scores]
        means = np.array([differences[name].mean() for name in scores if name != "samples"])
        lines.append([title, *cells, with_error(means)])
    return markdown(["", *first, "mean difference of heads"], lines)


def with_error(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{values.mean():+.3f}{error}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET", help="a folder of class folders")
    parser.add_argument("--samples", type=Path, help="100 images, one each of SAMPLED_CLASSES")
    parser.add_argument("--size", type=int, nargs="+", default=[224, 96], help="side of the square, in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    main()
