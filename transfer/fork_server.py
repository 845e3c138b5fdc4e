"""Processes on this machine that have TensorFlow as soon as they start.

They are forked from a server, a fresh process that has imported it (`preloaded.py`) and done nothing else: no object of
the process that asks for them is in them. As any new process of `multiprocessing`, they import its main module first.
Started when a job starts, the server imports while the job does other work. Where forking is not known to be safe, on
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
from multiprocessing import forkserver

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
"""No such process needs a GPU, and TensorFlow takes all the memory of those it sees."""
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


def start_server() -> None:
    """Start the server, if there is none; returns at once, while it imports TensorFlow."""
    if _METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["transfer.preloaded"])
        forkserver.ensure_running()


def process_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of at most so many processes, with this one's environment but no GPU. They end when this process does."""
    start_server()
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context(_METHOD),
        initializer=_prepare_forked,
        # The server has the environment of the moment when it started.
        initargs=({**os.environ, **WITHOUT_GPU},),
    )


def _prepare_forked(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    prepare_process(environment)
    # It is there already, unless the process was spawned.
    importlib.import_module("transfer.preloaded")


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
