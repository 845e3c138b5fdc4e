"""Local processes that have TensorFlow imported when they start.

They are forked from a server, a new process that has only imported TensorFlow (`preloaded.py`). They contain no object
of the process that asks for them, and not its main module, so a script needs no `__main__` guard. The server starts
with the job and imports while the job does other work. Forking is known to be safe only on Linux; elsewhere processes
are spawned and import TensorFlow themselves.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from types import ModuleType

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
"""These processes need no GPU, and TensorFlow would take all memory of visible GPUs."""


class _WithoutMain:
    """A process that does not import the main module of its parent, which `multiprocessing` does by default."""

    _one_at_a_time = threading.Lock()
    """One thread at a time: another could take the first one's empty module for the main module, and restore it."""

    def start(self) -> None:
        with self._one_at_a_time:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()  # type: ignore[misc]
            finally:
                sys.modules["__main__"] = main


class _Forked(_WithoutMain, ForkServerProcess):
    pass


class _Spawned(_WithoutMain, SpawnProcess):
    pass


class _Fork(ForkServerContext):
    Process = _Forked


class _Spawn(SpawnContext):
    Process = _Spawned


_CAN_FORK = sys.platform == "linux"


def start_server() -> None:
    """Start the server if there is none. It returns at once, while the server imports TensorFlow."""
    if _CAN_FORK:
        multiprocessing.set_forkserver_preload(["transfer.runtime.preloaded"])
        # First, because starting the tracker unblocks Ctrl-C.
        resource_tracker.ensure_running()
        # The server inherits the blocked Ctrl-C, which would end it with a traceback until `preloaded.py` ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def process_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of at most `processes` processes with this environment, without GPUs. They end with this process."""
    start_server()
    return ProcessPoolExecutor(
        processes,
        mp_context=_Fork() if _CAN_FORK else _Spawn(),
        initializer=_prepare_forked,
        # The server has the environment of the time at which it started.
        initargs=({**os.environ, **WITHOUT_GPU},),
    )


def spawning_context() -> SpawnContext:
    """A context that spawns processes, which do not import the main module."""
    return _Spawn()


def _prepare_forked(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    prepare_process(environment)
    # TensorFlow is imported already, unless the process was spawned.
    importlib.import_module("transfer.runtime.preloaded")


def prepare_process(environment: dict[str, str]) -> None:
    """Initializer of a pool's processes: set these environment variables, and prepare an orderly end."""
    os.environ.update(environment)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # These describe a group of training workers, to which this process does not belong.
    os.environ.pop("TF_CONFIG", None)
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends: workers of a killed parent would wait forever for the pool's queues."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
