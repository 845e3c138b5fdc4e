"""OpenVINO as an engine: an optional extra that runs frozen networks faster than TensorFlow does on CPUs."""

from __future__ import annotations

import importlib.util
import os
from queue import SimpleQueue
from typing import Any

import numpy as np
import tensorflow as tf

from transfer.activations.engines import Hint, Runner, Setting
from transfer.errors import ActivationsError
from transfer.startup import without_modules

FEW_CPUS = 4
"""Up to this many are kept busy by one call at a time."""


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """Runs a concrete function without variables, float32 [n, *row_shape] to a list of tensors, on the CPU in float32.

    Raises ActivationsError when OpenVINO is not installed, when the function computes in a reduced precision, and when
    it has an operation that OpenVINO does not know.
    """

    name = "openvino"

    def __init__(self, function: Any, row_shape: tuple[int, ...], *, largest: int) -> None:
        if not is_installed():
            raise ActivationsError(
                "OpenVINO is not installed.", advice="Install it with `pip install 'transfer[openvino]'`."
            )
        if reduced := _reduced_precision(function.graph):
            raise ActivationsError(
                f"The network computes in {reduced}, and OpenVINO is used for float32 only.",
                advice="Run it with TensorFlow.",
            )
        self._model = _convert(function)
        self._row_shape = row_shape
        hints: list[Hint] = ["LATENCY", "THROUGHPUT"]
        if _thread_count() > FEW_CPUS:
            hints.reverse()
        self.settings = list(dict.fromkeys(Setting(min(rows, largest), hint) for hint in hints for rows in (16, 32)))

    def runner(self, setting: Setting) -> Runner:
        """Compile the function for a setting. Raises ActivationsError when OpenVINO refuses."""
        import openvino

        properties = {"PERFORMANCE_HINT": setting.hint, "INFERENCE_PRECISION_HINT": "f32"}
        if _thread_count() < (os.cpu_count() or 1):
            properties["INFERENCE_NUM_THREADS"] = str(_thread_count())
        try:
            # With a fixed number of rows it runs a tenth faster.
            self._model.reshape([setting.rows, *self._row_shape])
            compiled = openvino.Core().compile_model(self._model, "CPU", properties)
        except Exception as error:
            raise _refused(error) from error
        return _OpenVinoRunner(compiled, setting)


class _OpenVinoRunner:
    def __init__(self, compiled: Any, setting: Setting) -> None:
        self.setting = setting
        self.calls_at_once = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.calls_at_once):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        values = np.ascontiguousarray(rows, np.float32)
        if missing := self.setting.rows - len(rows):
            values = np.concatenate([values, np.zeros((missing, *rows.shape[1:]), np.float32)])
        request = self._requests.get()
        try:
            outputs = request.infer([values], share_inputs=True)
            return [outputs[index][: len(rows)] for index in range(len(outputs))]
        finally:
            self._requests.put(request)


def _convert(function: Any) -> Any:
    """The OpenVINO model of a concrete function, with its outputs in their order."""
    # That package reports each import of OpenVINO to Google Analytics; OpenVINO copes without.
    with without_modules("openvino_telemetry"):
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.tensorflow.graph_iterator import GraphIteratorTFGraph
    # What `openvino.convert_model` does, without its reports to Intel.
    frontend = FrontEndManager().load_by_framework("tf")
    operations = GraphIteratorTFGraph(function.graph, share_weights=False)  # OpenVINO alone does not keep it alive.
    try:
        model = frontend.convert(frontend.load(operations))
        # It takes whatever nobody uses for an output, too: sizes that a layer asked for while it was traced.
        results = [model.output(output.name).get_node() for output in function.outputs]
        return openvino.Model(results, model.get_parameters())
    except Exception as error:
        raise _refused(error) from error


def _thread_count() -> int:
    """Threads that this process should use: containers, batch systems and Ray (by OMP_NUM_THREADS) set limits."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    own_share = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(cpu_count()), int(own_share) if own_share.isdigit() and int(own_share) else int(cpu_count()))


def _reduced_precision(graph: Any) -> str | None:
    """Name of a float type smaller than float32 that some operation answers."""
    kinds = {output.dtype for operation in graph.get_operations() for output in operation.outputs}
    return next((kind.name for kind in (tf.bfloat16, tf.float16) if kind in kinds), None)


def _refused(error: Exception) -> ActivationsError:
    lines = str(error).strip().splitlines() or [""]
    # Of a network that cannot be converted it lists the operations like this, amid much else.
    reason = next((line for line in lines if line.startswith("-- ")), lines[-1]).removeprefix("-- ")
    return ActivationsError(
        f"OpenVINO does not run the network ({type(error).__name__}: {reason}).", advice="Run it with TensorFlow."
    )
