"""One function over many items: on the Ray cluster when there is one, over local processes otherwise.

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
"""Less does not repay another process, which first has TensorFlow compile the decoder: a second or two."""
ITEMS_IN_FLIGHT_PER_CPU = 2
MAX_HEAVY_ITEMS_IN_FLIGHT = 16
RAY_RETRIES = 3


def on_cluster() -> bool:
    """Whether work goes to Ray: whoever wants that has connected to it before."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def process_count(images: int, *, size_bytes: int) -> int:
    """Local processes worth starting for this many images, of so many bytes together."""
    # It comes with scikit-learn, and knows the limits that containers and batch systems set.
    from joblib import cpu_count  # type: ignore[import-untyped]

    cpus: int = cpu_count()
    worth = max(-(-images // IMAGES_PER_PROCESS), -(-size_bytes // SIZE_BYTES_PER_PROCESS))
    return max(1, min(cpus, worth))


def in_order(
    started: Iterable[Started], result: Callable[[Started], Answer], *, is_full: Callable[[Sequence[Started]], bool]
) -> Generator[Answer, None, None]:
    """Yield `result(work)` of each piece of work in the order in which `started` gives them.

    `started` starts work when it is asked for the next piece, which it is until `is_full` holds of the pieces whose
    results were not taken yet. So whoever reads the results bounds how much is under way. Raises what both raise.
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
    """Yield `function(item)` of each item, in the items' order; `items` is read only a little ahead of the answers.

    `function` and the items are pickled. `processes` counts for local work; one means this process. `heavy` items
    carry megabytes, so that fewer travel at once. Raises what the function raises, and DatasetError when workers die:
    at once locally, on Ray after a few attempts.
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

    Raises what the function raises, and DatasetError when the process dies.
    """
    # Not one that is forked with TensorFlow in it: that has no Keras, which others may want.
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

    # The environment makes Ray start workers for these tasks alone: the next task in them may want a GPU.
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
    # Tasks still under way after an error are few and end by themselves. They are not cancelled: in Ray 2.60 a task
    # that is cancelled while it completes ends the whole driver ("Tried to complete task that was not pending").


def _call(function: Callable[[Item], Answer], item: Item) -> Answer:
    with quiet_stderr():
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
