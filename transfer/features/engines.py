"""What can run a frozen function: TensorFlow, and OpenVINO as an optional extra. How rows are handed over is fixed.

docs/log.md has what was measured for other sizes and hints.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from transfer.errors import FeaturesError
from transfer.runtime.distribution import install_extra
from transfer.runtime.parallel import in_order
from transfer.runtime.startup import without_modules

FEW_CPUS = 4
"""One call at a time keeps up to this many CPUs busy; more of them share several calls at a time."""
OPENVINO_ROWS = 16
"""In one call; as for TensorFlow, on CPUs and on a GPU."""
TENSORFLOW_ROWS = 32
GPU_ROWS = 128


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("openvino") is not None


def sees_gpu() -> bool:
    """Whether TensorFlow runs on a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))


class Engine(Protocol):
    """A function that is ready to run. It is called from `calls_at_once` threads."""

    name: str
    rows: int
    """At most, in one call."""
    calls_at_once: int

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        """Outputs, float32 [n, …] each, for float32 [n, …]."""


def run(engine: Engine, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield the outputs of each batch, in order. While they are computed, the next batches are read."""
    with ThreadPoolExecutor(engine.calls_at_once) as pool:

        def calls(batch: np.ndarray) -> list[Future[list[np.ndarray]]]:
            starts = range(0, len(batch), engine.rows)
            return [pool.submit(engine, batch[start : start + engine.rows]) for start in starts]

        def is_full(waiting: Sequence[list[Future[list[np.ndarray]]]]) -> bool:
            # Enough calls stay behind to keep the engine busy while the reader has the answer.
            return sum(map(len, waiting)) - len(waiting[0]) >= engine.calls_at_once

        try:
            yield from in_order(map(calls, batches), _joined, is_full=is_full)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _joined(calls: list[Future[list[np.ndarray]]]) -> list[np.ndarray]:
    parts = [call.result() for call in calls]
    return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


class TensorFlowEngine:
    """Runs a concrete function with TensorFlow, on whatever device it chooses.

    `largest`: rows that fit into one call.
    """

    name = "tensorflow"
    calls_at_once = 1

    def __init__(self, function: Any, *, largest: int) -> None:
        self._function = function
        self.rows = min(GPU_ROWS if sees_gpu() else TENSORFLOW_ROWS, largest)

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        """Outputs for float32 [n, …]; TensorFlow prepares the function when it first sees a number of rows."""
        return [output.numpy() for output in self._function(tf.constant(rows, tf.float32))]


class OpenVinoEngine:
    """Runs a concrete function without variables, float32 [n, *row_shape] to a list of tensors, on the CPU in float32.

    `largest`: rows that fit into one call. Raises FeaturesError when OpenVINO is not installed or refuses the function,
    when the function computes in a reduced precision, and when it has an operation that OpenVINO does not know.
    """

    name = "openvino"

    def __init__(self, function: Any, row_shape: tuple[int, ...], *, largest: int) -> None:
        if not is_installed():
            raise FeaturesError("OpenVINO is not installed.", advice=install_extra("openvino"))
        kinds = {output.dtype for operation in function.graph.get_operations() for output in operation.outputs}
        if reduced := next((kind.name for kind in (tf.bfloat16, tf.float16) if kind in kinds), None):
            raise FeaturesError(
                f"The network computes in {reduced}, and OpenVINO is used for float32 only.",
                advice="Run it with TensorFlow.",
            )
        self.rows = min(OPENVINO_ROWS, largest)
        threads = _thread_count()
        properties = {
            "PERFORMANCE_HINT": "LATENCY" if threads <= FEW_CPUS else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads < (os.cpu_count() or 1):
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            compiled = _compiled(function, [self.rows, *row_shape], properties)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            # Of a network that cannot be converted it lists the operations like this, amid much else.
            reason = next((line for line in lines if line.startswith("-- ")), lines[-1]).removeprefix("-- ")
            raise FeaturesError(
                f"OpenVINO does not run the network ({type(error).__name__}: {reason}).",
                advice="Run it with TensorFlow.",
            ) from error
        self.calls_at_once = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.calls_at_once):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        """Outputs for float32 [n, *row_shape]. Short calls are filled up."""
        values = np.ascontiguousarray(rows, np.float32)
        if missing := self.rows - len(rows):
            values = np.concatenate([values, np.zeros((missing, *rows.shape[1:]), np.float32)])
        request = self._requests.get()
        try:
            outputs = request.infer([values], share_inputs=True)
            return [outputs[index][: len(rows)] for index in range(len(outputs))]
        finally:
            self._requests.put(request)


def _compiled(function: Any, shape: list[int], properties: dict[str, str]) -> Any:
    """The function compiled by OpenVINO for inputs of one shape, with its outputs in their order."""
    # That package reports each import of OpenVINO to Google Analytics; OpenVINO copes without.
    with without_modules("openvino_telemetry"):
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.tensorflow.graph_iterator import GraphIteratorTFGraph
    # What `openvino.convert_model` does, without its reports to Intel.
    frontend = FrontEndManager().load_by_framework("tf")
    operations = GraphIteratorTFGraph(function.graph, share_weights=False)  # OpenVINO alone does not keep it alive.
    model = frontend.convert(frontend.load(operations))
    # It takes whatever nobody uses for an output, too: sizes that a layer asked for while it was traced.
    results = [model.output(output.name).get_node() for output in function.outputs]
    model = openvino.Model(results, model.get_parameters())
    # With a fixed number of rows it runs a tenth faster.
    model.reshape(shape)
    return openvino.Core().compile_model(model, "CPU", properties)


def _thread_count() -> int:
    """Threads that this process should use: containers, batch systems and Ray (by OMP_NUM_THREADS) set limits."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    own_share = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(cpu_count()), int(own_share) if own_share.isdigit() and int(own_share) else int(cpu_count()))
