"""What commands cost from start to end, as whole processes, against what a person would run in their place.

    python -m scripts.bench.seconds                       # 1,000 images, 5 rounds: about 8 minutes on 2 cores
    python -m scripts.bench.seconds --images 200 --rounds 1 --json

Arms, alternating, each a process of its own (MobileNetV2 at 224 pixels with random weights, ten epochs of a head):

    import    python -c "import tensorflow"
    script    features once, a head on arrays (`script`): no checks, no report, no export, nothing kept
    cold      transfer train, on empty storage
    warm      transfer train, with another learning rate: all features are cached
    loop      the published signature in a bare loop over 400 images, loading included (`loop`)
    predict   transfer predict of the same images, not for the first time
    help      transfer --help
    show      transfer config show

Ratios are medians over rounds of ratios within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.bench.common import ratio, timed, write_jpegs

PREDICTED = 400
EPOCHS = 10
RATIOS = {
    "warm / import": 2.5,
    "cold / script": 1.0,
    "predict / loop": 1.0,
}
"""With what is aimed at, or less."""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="transfer-bench-") as folder:
        bench = Bench(Path(folder), images=options.images, image_size=options.image_size)
        seconds: dict[str, list[float]] = {name: [] for name in bench.arms}
        for _ in range(options.rounds):
            for name, arm in bench.arms.items():
                seconds[name].append(timed(arm))
    result = {
        "images": options.images,
        "rounds": options.rounds,
        "seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "ratios": {name: ratio(*(seconds[arm] for arm in name.split(" / "))) for name in RATIOS},
        "aims": RATIOS,
    }
    print(json.dumps(result, indent=None if options.json else 2))


class Bench:
    """The arms, and what they work on; all is done once beforehand that a later call finds done."""

    def __init__(self, folder: Path, *, images: int, image_size: int) -> None:
        self._folder = folder
        self._image_size = image_size
        self._numbers = itertools.count()
        self._source = folder / "images"
        write_jpegs(self._source, range(images), differing_share=0.9)
        new = folder / "new"
        write_jpegs(new, range(images, images + PREDICTED))
        self._warm_config = self._config("warm")
        self._train(self._warm_config)
        self._transfer("registry", "fetch", str(self._warm_config), "--to", str(folder / "served"))
        model = str(folder / "served/1")
        self.arms: dict[str, Callable[[], None]] = {
            "import": partial(run, "-c", "import tensorflow"),
            "script": partial(by_hand, script, str(self._source), image_size),
            "cold": self._cold,
            "warm": partial(self._train, self._warm_config),
            "loop": partial(by_hand, loop, model, str(new)),
            "predict": partial(self._predict, new),
            "help": partial(self._transfer, "--help"),
            "show": partial(self._transfer, "config", "show", str(self._warm_config)),
        }
        self._predict(new)

    def _cold(self) -> None:
        self._train(self._config(f"cold-{next(self._numbers)}"))

    def _train(self, config: Path) -> None:
        self._transfer("train", str(config), "--set", f"phases.0.learning_rate={1e-3 + 1e-6 * next(self._numbers)}")

    def _predict(self, images: Path) -> None:
        output = self._folder / f"answers-{next(self._numbers)}.parquet"
        self._transfer("predict", str(self._warm_config), "--images", str(images), "--output", str(output))

    def _transfer(self, *arguments: str) -> None:
        run("-m", "transfer", *arguments)

    def _config(self, name: str) -> Path:
        path = self._folder / f"{name}.yaml"
        document = {
            "name": "bench",
            "storage": str(self._folder / name),
            "dataset": {"source": str(self._source)},
            "base": {"model": "MobileNetV2", "weights": "none", "image_size": self._image_size},
            "phases": [{"unfreeze": 0, "epochs": EPOCHS}],
            # On a random base it learns nothing, and by default such a model does not serve.
            "publish": {"promote": "always"},
        }
        # JSON is YAML.
        path.write_text(json.dumps(document))
        return path


def script(folder: str, image_size: int) -> None:
    """What a careful person writes: each image through the network once, then a head on the features.

    It trains as `transfer train` does here, and prints the accuracy on a fifth of the images.
    """
    import keras
    import numpy as np

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
    head.fit(features[train], labels[train], batch_size=32, epochs=EPOCHS, verbose=0)
    print(head.evaluate(features[test], labels[test], verbose=0)[1])


def loop(model: str, folder: str) -> None:
    """The published signature, asked in a bare loop."""
    import tensorflow as tf

    loaded = tf.saved_model.load(model)
    names = []
    paths = sorted(Path(folder).rglob("*.jpg"))
    for start in range(0, len(paths), 32):
        batch = paths[start : start + 32]
        answers = loaded.signatures["serving_default"](image_bytes=tf.constant([path.read_bytes() for path in batch]))
        names += answers["class_name"].numpy().tolist()
    print(len(names))


def by_hand(function: Callable[..., None], *arguments: object) -> None:
    """Call a function of this module in a process of its own."""
    run("-c", f"from scripts.bench.seconds import {function.__name__} as arm; arm(*{arguments!r})")


def run(*arguments: str) -> None:
    """Run Python to its end. Raises CalledProcessError, and prints what it said, when it fails."""
    # TensorFlow's own log level, for all arms: our commands set it themselves.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
