"""Processes on this machine that have TensorFlow as soon as they start.

They are forked from a server, a fresh process that has imported it (`preloaded.py`) and done nothing else: no object of
the process that asks for them is in them, nor its main module: a script needs no guard against being run again. Started
when a job starts, the server imports while the job does other work. Where forking is not known to be safe, on
anything but Linux, a process is spawned instead and imports for itself.
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
"""No such process needs a GPU, and TensorFlow takes all the memory of those it sees."""


class _WithoutMain:
    """A process that does not import the main module of the one that starts it, as `multiprocessing` has them do."""

    _one_at_a_time = threading.Lock()
    """Of two threads, one could take the other's empty module for the main one, and put that back last."""

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
    """Start the server, if there is none; returns at once, while it imports TensorFlow."""
    if _CAN_FORK:
        multiprocessing.set_forkserver_preload(["transfer.runtime.preloaded"])
        # First of all: whoever starts it has Ctrl-C unblocked afterwards.
        resource_tracker.ensure_running()
        # The server inherits that it is blocked. It would end with a traceback, until `preloaded.py` ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def process_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of at most so many processes, with this one's environment but no GPU. They end when this process does."""
    start_server()
    return ProcessPoolExecutor(
        processes,
        mp_context=_Fork() if _CAN_FORK else _Spawn(),
        initializer=_prepare_forked,
        # The server has the environment of the moment when it started.
        initargs=({**os.environ, **WITHOUT_GPU},),
    )


def spawning_context() -> SpawnContext:
    """Of processes that begin with nothing, and import no main module either."""
    return _Spawn()


def _prepare_forked(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    prepare_process(environment)
    # It is there already, unless the process was spawned.
    importlib.import_module("transfer.runtime.preloaded")


def prepare_process(environment: dict[str, str]) -> None:
    """What a new process of a pool does first: it takes these variables, and sees to it that it ends in order."""
    os.environ.update(environment)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Of a group of training workers that this process does not belong to.
    os.environ.pop("TF_CONFIG", None)
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent to end: the pool's queues would keep the workers of a killed parent waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
