"""Does the exported model answer what the evaluated model answered? Asked in a fresh process, in three ways.

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


def prove_parity(
    exported: Path, images: list[bytes], expected: np.ndarray, *, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Compare the exported model's answers, in a fresh process, with `expected`, float32 [images, classes].

    Returns the largest difference in a probability by way of loading (`loaders.py`). Python's loader answers all
    images, the other ways the first 32: what they can have wrong does not depend on the image. Raises ParityError when
    a difference is above `tolerance`, when a way does not answer, and when the process fails.
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
    found = json.loads(finished.stdout.splitlines()[-1])
    for way, outcome in found.items():
        check_outcome(way, outcome, images=len(images), tolerance=tolerance)
    logger.info("Exported and evaluated model differ by at most %.2g on %d images.", max(found.values()), len(images))
    return {way: float(outcome) for way, outcome in found.items()}


def check_outcome(way: str, outcome: float | str, *, images: int, tolerance: float) -> None:
    """Raise ParityError unless a way of loading answered, and differs by `tolerance` at most."""
    if isinstance(outcome, str):
        raise ParityError(
            f"The exported model does not answer, asked by {way}: {outcome}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        )
    # Written so that NaN is no agreement.
    if not outcome <= tolerance:
        raise ParityError(
            f"The exported model's probabilities, asked by {way}, differ from the evaluated model's by {outcome:.3g} "
            f"on {images} held-out images; at most {tolerance:g} is accepted.",
            advice="Nothing was published. Set publish.graph to `plain` where it is little more; else look for layers "
            "of the base network that behave differently when they are loaded again.",
        )


def compare(exported: Path, images: list[bytes], expected: np.ndarray) -> dict[str, float | str]:
    """The largest difference from `expected` for each way of loading, or why it did not answer."""
    from transfer.registry.loaders import LOADERS, answers_of, load_in_python

    batches = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
    found: dict[str, float | str] = {}
    for way, load in LOADERS.items():
        answers = answers_of(load, exported, batches if load is load_in_python else batches[:1])
        # NaN must fail the proof; Python's max() would drop it depending on the order.
        found[way] = answers if isinstance(answers, str) else float(np.max(np.abs(answers - expected[: len(answers)])))
    return found


def _main(exported: str, questions: str) -> None:
    # TensorFlow would load it, which takes as long again, and what is served must do without it.
    sys.modules["keras"] = None  # type: ignore[assignment]
    table = pq.read_table(questions)
    found = compare(Path(exported), table["image"].to_pylist(), np.stack(table["expected"].to_numpy()))
    print(json.dumps(found))  # noqa: T201 - the answer to the parent process


if __name__ == "__main__":
    _main(*sys.argv[1:])
