"""How fast a published model answers, against this project's own forward pass and against its plain graph.

    python -m scripts.bench.serving                                        # MobileNetV2 at 224 pixels, some minutes
    python -m scripts.bench.serving --network EfficientNetB0 --rounds 3 --json

Arms, alternating, in one process, on decoded images of random pixels:

    forward   the forward pass on TensorFlow that computes cached features (without the head)
    merged    the signature `pixels` of an export with `publish.graph: merged`
    plain     the same with `publish.graph: plain`

Ratios are medians over rounds of ratios within a round. The base has random weights, for nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from scripts.bench.common import ratio, timed
from transfer.backbone.backbone import pooled
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig, HeadConfig
from transfer.features.frozen import frozen_part_of
from transfer.features.network import Pass
from transfer.registry.export import export
from transfer.training.model import TransferModel, build_head

Arm = Callable[[tf.Tensor], object]
BATCHES = {"32 images": (32, 1), "one image": (1, 10)}
"""Images in a call, and calls in a round."""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="transfer-bench-") as folder:
        arms = arms_of(options.network, options.image_size, Path(folder))
        seconds = {name: seconds_of(arms, options, *batch) for name, batch in BATCHES.items()}
    result = {
        "network": options.network,
        "image_size": options.image_size,
        "rounds": options.rounds,
        "images_a_second": {
            name: {arm: BATCHES[name][0] / statistics.median(values) for arm, values in by_arm.items()}
            for name, by_arm in seconds.items()
        },
        **{
            f"{above} / {below}": {name: ratio(by_arm[above], by_arm[below]) for name, by_arm in seconds.items()}
            for above, below in (("forward", "merged"), ("merged", "plain"))
        },
    }
    print(json.dumps(result, indent=None if options.json else 2))


def arms_of(network: str, image_size: int, folder: Path) -> dict[str, Arm]:
    base = pooled(load_backbone(BaseNetworkConfig(model=network, weights="none", image_size=image_size)), "average")
    head = build_head(HeadConfig(), feature_shape=tuple(base.network.output_shape[1:]), class_count=5, seed=0)
    frozen = frozen_part_of(base, 0, map_dtype="float32")
    assert frozen is not None  # noqa: S101 - with nothing unfrozen there is one
    model = TransferModel(base, head, list("abcde"), digest=base.digest())
    arms: dict[str, Arm] = {"forward": Pass([frozen], None).trace()}
    for graph in ("merged", "plain"):
        export(model, folder / graph, provenance={}, graph=graph)
        arms[graph] = _signature(folder / graph)
    return arms


def _signature(folder: Path) -> Arm:
    loaded = tf.saved_model.load(str(folder))
    return lambda images: loaded.signatures["pixels"](images=images)


def seconds_of(arms: dict[str, Arm], options: argparse.Namespace, images: int, calls: int) -> dict[str, list[float]]:
    """Of a call, by arm and round."""
    shape = (images, options.image_size, options.image_size, 3)
    pixels = tf.constant(np.random.default_rng(0).integers(0, 256, shape), tf.float32)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(1 + options.rounds):
        for name, arm in arms.items():
            seconds[name].append(timed(partial(repeat, arm, pixels, calls)) / calls)
    # The first call prepares itself.
    return {name: values[1:] for name, values in seconds.items()}


def repeat(arm: Arm, pixels: tf.Tensor, calls: int) -> None:
    for _ in range(calls):
        arm(pixels)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="MobileNetV2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
