"""One function over many items: on the Ray cluster if there is one, else in local processes.

A new process imports the main module again, so a script that ingests guards its own work with
`if __name__ == "__main__":`. The command line and the jobs do.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import TypeVar

from transfer.errors import DatasetError, TransferError
from transfer.runtime.fork_server import WITHOUT_GPU, prepare_process, process_pool, spawning_context
from transfer.runtime.startup import quiet_stderr

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Started = TypeVar("Started")

IMAGES_PER_PROCESS = 1000
SIZE_BYTES_PER_PROCESS = 32 * 1024**2
"""Work below which another process does not pay: TensorFlow first compiles the decoder, for a second or two."""
ITEMS_IN_FLIGHT_PER_CPU = 2
MAX_HEAVY_ITEMS_IN_FLIGHT = 16
RAY_RETRIES = 3


def on_cluster() -> bool:
    """Whether work goes to Ray, which is so if this process has connected to it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def process_count(images: int, *, size_bytes: int) -> int:
    """Number of local processes that pay for this many images of `size_bytes` in total."""
    # This package comes with scikit-learn, and respects the limits of containers and batch systems.
    from joblib import cpu_count  # type: ignore[import-untyped]

    cpus: int = cpu_count()
    worth = max(-(-images // IMAGES_PER_PROCESS), -(-size_bytes // SIZE_BYTES_PER_PROCESS))
    return max(1, min(cpus, worth))


def in_order(
    started: Iterable[Started], result: Callable[[Started], Answer], *, is_full: Callable[[Sequence[Started]], bool]
) -> Generator[Answer, None, None]:
    """Yield `result(work)` for each piece of work, in the order of `started`.

    The iterator `started` starts a piece of work when it is advanced. It is advanced until `is_full` of the pieces
    whose results were not taken yet. So the reader of the results limits the work in flight. Raises what both raise.
    """
    waiting: deque[Started] = deque()
    for work in started:
        waiting.append(work)
        while is_full(waiting):
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def parallel_map(
    function: Callable[[Item], Answer], items: Iterable[Item], *, processes: int, heavy: bool = False
) -> Generator[Answer, None, None]:
    """Yield `function(item)` for each item, in order; `items` is read only slightly ahead of the results.

    `function` and the items are pickled. `processes`: number of local processes; one means this process. `heavy`: items
    have megabytes, so fewer are in flight. Raises what the function raises, and DatasetError if workers die: at once
    locally, on Ray after a few attempts.
    """
    if on_cluster():
        answers = _map_on_ray(function, items, heavy=heavy)
    elif processes > 1:
        in_flight = processes * ITEMS_IN_FLIGHT_PER_CPU
        answers = _map_on_processes(function, items, process_pool(processes), in_flight=in_flight)
    else:
        answers = (function(item) for item in items)
    with closing(answers):
        yield from answers


def run_in_process(function: Callable[[Item], Answer], item: Item) -> Answer:
    """Call a function in a new process of this machine, where it may import TensorFlow without touching a GPU.

    Raises what the function raises, and DatasetError if the process dies.
    """
    # Not a process of the fork server, which has TensorFlow without Keras: the function may need Keras.
    spawned = ProcessPoolExecutor(
        1,
        mp_context=spawning_context(),
        initializer=prepare_process,
        initargs=(WITHOUT_GPU,),
    )
    with closing(_map_on_processes(function, [item], spawned, in_flight=1)) as answers:
        return next(answers)


def _map_on_processes(
    function: Callable[[Item], Answer], items: Iterable[Item], pool: ProcessPoolExecutor, *, in_flight: int
) -> Generator[Answer, None, None]:
    started = (pool.submit(function, item) for item in items)
    try:
        yield from in_order(started, Future.result, is_full=lambda waiting: len(waiting) >= in_flight)
    except BrokenProcessPool as error:
        raise _workers_died("A worker process ended abruptly") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _map_on_ray(
    function: Callable[[Item], Answer], items: Iterable[Item], *, heavy: bool
) -> Generator[Answer, None, None]:
    import ray

    # With a runtime environment Ray starts workers for these tasks only; other tasks may need a GPU.
    environment = {**WITHOUT_GPU, "TF_CPP_MIN_LOG_LEVEL": "2"}
    options = {"num_cpus": 1, "max_retries": RAY_RETRIES, "runtime_env": {"env_vars": environment}}
    task = ray.remote(**options)(_call)
    shared = ray.put(function)
    started = (task.remote(shared, item) for item in items)
    try:
        yield from in_order(started, ray.get, is_full=lambda waiting: len(waiting) >= _room_on_ray(heavy=heavy))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TransferError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise _workers_died(f"Ray gave a task up ({type(error).__name__})") from error
    # Tasks in flight after an error are few and end by themselves. They are not cancelled: in Ray 2.60 a task that is
    # cancelled while it completes ends the whole driver ("Tried to complete task that was not pending").


def _call(function: Callable[[Item], Answer], item: Item) -> Answer:
    with quiet_stderr():
        return function(item)


def _room_on_ray(*, heavy: bool) -> int:
    """Number of tasks in flight: more than there are CPUs, so that an autoscaling cluster sees demand."""
    import ray

    room = max(1, int(ray.cluster_resources().get("CPU", 1))) * ITEMS_IN_FLIGHT_PER_CPU
    return min(room, MAX_HEAVY_ITEMS_IN_FLIGHT) if heavy else room


def _workers_died(what: str) -> DatasetError:
    return DatasetError(
        f"{what} while images were ingested; the dataset is as it was before.",
        advice="Usually the machine is out of memory, or the worker was killed. A script of your own must guard its "
        'work with `if __name__ == "__main__":`. Run the ingest again; what is written is found.',
    )
