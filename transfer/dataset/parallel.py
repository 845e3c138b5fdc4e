"""One function over many items: on the Ray cluster when there is one, over local processes otherwise.

A spawned process imports the main module again, so a script that ingests guards its own work with
`if __name__ == "__main__":`. The command line and the jobs do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any, TypeVar

from transfer.errors import DatasetError, TransferError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

IMAGES_PER_PROCESS = 500
"""Fewer images do not repay another process, which takes seconds to import TensorFlow."""
ITEMS_IN_FLIGHT_PER_CPU = 2
MAX_HEAVY_ITEMS_IN_FLIGHT = 16
RAY_RETRIES = 3
# Checking needs no GPU, and TensorFlow takes all the memory of those it sees.
WORKER_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def on_cluster() -> bool:
    """Whether work goes to Ray: whoever wants that has connected to it before."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def process_count(images: int) -> int:
    """Local processes worth starting for this many images."""
    # It comes with scikit-learn, and knows the limits that containers and batch systems set.
    from joblib import cpu_count  # type: ignore[import-untyped]

    cpus: int = cpu_count()
    return max(1, min(cpus, -(-images // IMAGES_PER_PROCESS)))


def parallel_map(
    function: Callable[[Item], Answer], items: Iterable[Item], *, processes: int, heavy: bool = False
) -> Generator[Answer, None, None]:
    """Yield `function(item)` of each item, in the items' order; `items` is read only a little ahead of the answers.

    `function` and the items are pickled. `processes` counts for local work; one means this process. `heavy` items
    carry megabytes, so that fewer travel at once. Raises what the function raises, and DatasetError when workers die:
    at once locally, on Ray after a few attempts.
    """
    if on_cluster():
        answers = _map_on_ray(function, items, heavy=heavy)
    elif processes > 1:
        answers = _map_on_processes(function, items, processes=processes)
    else:
        answers = (function(item) for item in items)
    with closing(answers):
        yield from answers


def run_in_process(function: Callable[[Item], Answer], item: Item) -> Answer:
    """Call a function in a new process of this machine, where it may import TensorFlow without touching a GPU.

    Raises what the function raises, and DatasetError when the process dies.
    """
    with closing(_map_on_processes(function, [item], processes=1)) as answers:
        return next(answers)


def _map_on_processes(
    function: Callable[[Item], Answer], items: Iterable[Item], *, processes: int
) -> Generator[Answer, None, None]:
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    waiting: deque[Future[Answer]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= processes * ITEMS_IN_FLIGHT_PER_CPU:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise _workers_died("A worker process ended abruptly") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    os.environ.update(WORKER_ENVIRONMENT)
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent to end: the pool's queues would keep the workers of a killed parent waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _map_on_ray(
    function: Callable[[Item], Answer], items: Iterable[Item], *, heavy: bool
) -> Generator[Answer, None, None]:
    import ray

    # The environment makes Ray start workers for these tasks alone: the next task in them may want a GPU.
    options = {"num_cpus": 1, "max_retries": RAY_RETRIES, "runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    task = ray.remote(**options)(_call)
    shared = ray.put(function)
    waiting: deque[Any] = deque()

    def next_answer() -> Answer:
        answer: Answer = ray.get(waiting[0])
        waiting.popleft()
        return answer

    try:
        for item in items:
            waiting.append(task.remote(shared, item))
            if len(waiting) >= _room_on_ray(heavy=heavy):
                yield next_answer()
        while waiting:
            yield next_answer()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TransferError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise _workers_died(f"Ray gave a task up ({type(error).__name__})") from error
    # Tasks still under way after an error are few and end by themselves. They are not cancelled: in Ray 2.60 a task
    # that is cancelled while it completes ends the whole driver ("Tried to complete task that was not pending").


def _call(function: Callable[[Item], Answer], item: Item) -> Answer:
    return function(item)


def _room_on_ray(*, heavy: bool) -> int:
    """Tasks to have in flight now. More than there are CPUs, so that a cluster which grows on demand sees demand."""
    import ray

    room = max(1, int(ray.cluster_resources().get("CPU", 1))) * ITEMS_IN_FLIGHT_PER_CPU
    return min(room, MAX_HEAVY_ITEMS_IN_FLIGHT) if heavy else room


def _workers_died(what: str) -> DatasetError:
    return DatasetError(
        f"{what} while images were ingested; the dataset is as it was before.",
        advice="Usually the machine is out of memory, or the worker was killed. A script of your own must guard its "
        'work with `if __name__ == "__main__":`. Run the ingest again; what is written is found.',
    )
