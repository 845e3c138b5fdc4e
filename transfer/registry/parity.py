"""Does the exported model answer what the evaluated model answered? Asked in a fresh process.

A fresh process has nothing of the training process in it: a layer that only works because its Python object is still
alive, a preprocessing step left out of the export or a class order that changed show up here, before anyone serves it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer.errors import ParityError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest difference in any probability that may be published."""
HALF_PRECISION_TOLERANCE = 2e-2
"""The same for networks that compute in half precision, where fused and plain kernels round differently."""
_BATCH_SIZE = 32


def prove_parity(exported: Path, images: list[bytes], expected: np.ndarray, *, tolerance: float = TOLERANCE) -> float:
    """Compare the exported model's answers, in a fresh process, with `expected`, float32 [images, classes].

    Returns the largest difference. Raises ParityError when it is above `tolerance` or the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.parquet"
        pq.write_table(pa.table({"image": images, "expected": list(expected)}), questions)
        # The network was trained elsewhere, maybe on a GPU: on the CPU the comparison does not depend on what is free.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        environment.pop("TF_CONFIG", None)
        command = [sys.executable, "-m", "transfer.registry.parity", str(exported), str(questions)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if finished.returncode != 0:
        raise ParityError(
            f"The exported model cannot be used in a fresh process: {finished.stderr.strip()[-2000:]}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        )
    difference = float(json.loads(finished.stdout.splitlines()[-1])["largest_difference"])
    logger.info("Exported and evaluated model differ by at most %.2g on %d images.", difference, len(images))
    if not difference <= tolerance:
        raise ParityError(
            f"The exported model's probabilities differ from the evaluated model's by {difference:.3g} on "
            f"{len(images)} held-out images; at most {tolerance:g} is accepted.",
            advice="Nothing was published. Check layers of the base network that behave differently when reloaded.",
        )
    return difference


def _main(exported: str, questions: str) -> None:
    # TensorFlow would load it, which takes as long again, and what is served must do without it.
    sys.modules["keras"] = None  # type: ignore[assignment]
    import tensorflow as tf

    answer = tf.saved_model.load(exported).signatures["serving_default"]
    largest = 0.0
    for batch in pq.ParquetFile(questions).iter_batches(_BATCH_SIZE):
        table = batch.to_pydict()
        probabilities = answer(image_bytes=tf.constant(table["image"]))["probabilities"].numpy()
        difference = np.abs(probabilities - np.array(table["expected"], np.float32))
        # NaN must fail the proof; max() would drop it depending on the order.
        largest = float(np.max([largest, np.max(difference)]))
    print(json.dumps({"largest_difference": largest}))  # noqa: T201 - the answer to the parent process


if __name__ == "__main__":
    _main(*sys.argv[1:])
