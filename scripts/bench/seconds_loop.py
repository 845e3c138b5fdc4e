"""The published signature, asked in a bare loop: python -m scripts.bench.seconds_loop SAVED_MODEL FOLDER."""

import sys
from pathlib import Path

import tensorflow as tf


def main(model: str, folder: str) -> None:
    loaded = tf.saved_model.load(model)
    names = []
    paths = sorted(Path(folder).rglob("*.jpg"))
    for start in range(0, len(paths), 32):
        batch = paths[start : start + 32]
        answers = loaded.signatures["serving_default"](image_bytes=tf.constant([path.read_bytes() for path in batch]))
        names += answers["class_name"].numpy().tolist()
    print(len(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
