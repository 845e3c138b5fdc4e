"""Does the exported model answer what the evaluated model answered? Asked in a fresh process, by several loaders.

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

from transfer.errors import OutOfMemoryError, ParityError

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

    Returns the largest difference in a probability, by the name of the loader (`loaders.py`). Python's loader answers
    all images, the others the first 32: what they can have wrong does not depend on the image. Raises ParityError when
    a difference is above `tolerance`, when a loader gets no answer, and when the process fails; OutOfMemoryError.
    """
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.parquet"
        pq.write_table(pa.table({"image": images, "expected": list(expected)}), questions)
        # The network was trained elsewhere, maybe on a GPU: on the CPU the comparison does not depend on what is free.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        environment.pop("TF_CONFIG", None)
        command = [sys.executable, "-m", "transfer.registry.parity", str(exported), str(questions)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if finished.returncode == OutOfMemoryError.exit_code:
        raise OutOfMemoryError(
            finished.stderr.strip().splitlines()[-1],
            advice="Nothing was published. Repeat the command when the machine has more memory.",
        )
    if finished.returncode < 0:
        raise ParityError(
            f"The process that asks the exported model was ended by signal {-finished.returncode}.",
            advice="Nothing was published. Usually the machine ran out of memory; repeat the command when it has more.",
        )
    if finished.returncode != 0:
        raise ParityError(
            f"The exported model cannot be used in a fresh process: {finished.stderr.strip()[-2000:]}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        )
    found = json.loads(finished.stdout.splitlines()[-1])
    for loader, outcome in found.items():
        check_outcome(loader, outcome, images=len(images), tolerance=tolerance)
    logger.info("Exported and evaluated model differ by at most %.2g on %d images.", max(found.values()), len(images))
    return {loader: float(outcome) for loader, outcome in found.items()}


def check_outcome(loader: str, outcome: float | str, *, images: int, tolerance: float) -> None:
    """Raise ParityError unless a loader got answers, which differ by `tolerance` at most."""
    if isinstance(outcome, str):
        raise ParityError(
            f"The exported model does not answer, asked by {loader}: {outcome}",
            advice="Nothing was published. This is a bug in the export or in a custom network.",
        )
    # Written so that NaN is no agreement.
    if not outcome <= tolerance:
        raise ParityError(
            f"The exported model's probabilities, asked by {loader}, differ from the evaluated model's by "
            f"{outcome:.3g} on {images} held-out images; at most {tolerance:g} is accepted.",
            advice="Nothing was published. Check layers of the base network that behave differently when reloaded.",
        )


def compare(exported: Path, images: list[bytes], expected: np.ndarray) -> dict[str, float | str]:
    """The largest difference from `expected` by the name of each loader, or why it got no answer.

    Raises OutOfMemoryError.
    """
    from transfer.registry.loaders import LOADERS, PYTHON

    batches = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
    found: dict[str, float | str] = {}
    for loader in LOADERS:
        answers = loader.answers(exported, batches if loader is PYTHON else batches[:1])
        # NaN must fail the proof; Python's max() would drop it depending on the order.
        differs = answers if isinstance(answers, str) else float(np.max(np.abs(answers - expected[: len(answers)])))
        found[loader.name] = differs
    return found


def _main(exported: str, questions: str) -> None:
    # TensorFlow would load it, which takes as long again, and what is served must do without it.
    sys.modules["keras"] = None  # type: ignore[assignment]
    table = pq.read_table(questions)
    try:
        found = compare(Path(exported), table["image"].to_pylist(), np.stack(table["expected"].to_numpy()))
    except OutOfMemoryError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(error.exit_code)
    print(json.dumps(found))  # noqa: T201 - the answer to the parent process


if __name__ == "__main__":
    _main(*sys.argv[1:])
