"""Units of work, mapped over actors on the Ray cluster or done in this process.

An actor makes what all units need once (a network, a connection), then does one unit after the other. A unit is the
unit of retry: those of an actor that died go to whichever is free next, and another actor is started in its place. So
a unit is answered once, but may be done twice: what it writes must be written by put-if-absent. The driver holds no
more than the units at work and their answers, and imports nothing for them but Ray.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import floor
from typing import Any, Generic, Self, TypeVar

from transfer.config import WorkersConfig
from transfer.errors import ClusterError, TransferError
from transfer.runtime.cluster import S3_ENVIRONMENT, anywhere
from transfer.runtime.fork_server import WITHOUT_GPU
from transfer.runtime.memory import memory_explained
from transfer.runtime.parallel import in_order as in_order_of
from transfer.runtime.startup import own_process

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit")
Answer = TypeVar("Answer")

_ENVIRONMENT = {**S3_ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2"}


@dataclass(frozen=True)
class Task:
    """What actors are for, in the words of their errors."""

    name: str
    """What a worker does, as in "no worker to *predict* started"."""
    error: type[TransferError] = ClusterError
    """Class of the errors when workers do not start, or keep dying."""
    advice: str = "Repeat the command: what is done is found."
    """What to do after workers kept dying."""


class Actors(Generic[Unit, Answer]):
    """Does units of work on up to `workers.replicas` actors, or in this process if `workers.count` is 0.

    It is a context: all actors have ended when it is left, so that training finds their CPUs and GPUs free.

    `make`: a class or function, called once in each actor with `arguments`, which are pickled once for all actors. It
    returns the function of a unit, and imports TensorFlow by `import_tensorflow` if it needs it. `at_once`: units that
    an actor does at the same time, in threads: with 2, one is read while another one is computed. If the function is an
    object with a method `close`, that is called in this process when the units at work are not wanted any more: an
    error or Ctrl-C would otherwise wait for them. Actors are killed.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[Unit], Answer]],
        *arguments: Any,
        workers: WorkersConfig,
        task: Task,
        at_once: int = 1,
    ) -> None:
        self._make, self._arguments = make, arguments
        self._workers, self._task, self._at_once = workers, task, at_once
        self._actors: list[_Actor] = []
        self._queue: deque[_Numbered] = deque()
        """Units that no actor has yet."""
        self._awaited: dict[Any, tuple[_Actor, _Numbered | None]] = {}
        """By the reference of the answer: the actor, and the unit that it does; None when it is starting."""
        self._deaths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._actors:
            self._end(self._actors[0])

    def map(self, units: Iterable[Unit], *, in_order: bool = False) -> Iterator[tuple[Unit, Answer]]:
        """Yield each unit with its answer: as they come, or `in_order`.

        `units` may be an iterator without end: it is read when an actor has room for another unit, and at most as many
        answers wait for their turn as units fit on all actors. As many actors are started as there are units for. It
        may be called again when it has ended. Raises what a unit raises, and `task.error` if actors keep dying, or if
        none starts in `workers.start_timeout_s`.
        """
        if self._workers.count == 0:
            yield from self._map_here(units)
            return
        numbered = (_Numbered(position, unit) for position, unit in enumerate(units))
        waiting: dict[int, tuple[Unit, Answer]] = {}
        turn = 0
        while self._take(numbered, waiting=len(waiting)):
            self._start_actors()
            self._hand_out()
            if (answered := self._next_answer()) is None:
                continue
            done, answer = answered
            if not in_order:
                yield done.unit, answer
                continue
            waiting[done.position] = done.unit, answer
            while turn in waiting:
                yield waiting.pop(turn)
                turn += 1

    def _map_here(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Answer]]:
        with ThreadPoolExecutor(self._at_once) as pool:
            started = ((unit, pool.submit(self._work_here, unit)) for unit in units)
            try:
                yield from in_order_of(started, _finished, is_full=lambda waiting: len(waiting) >= self._at_once)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if close := getattr(self._work_here, "close", None):
                    close()
                raise

    @cached_property
    def _work_here(self) -> Callable[[Unit], Answer]:
        return self._make(*self._arguments)

    def _take(self, units: Iterator[_Numbered], *, waiting: int) -> int:
        """Read as many units as all actors have room for. Returns how many are in hand: queued or handed out."""
        room = self._workers.replicas * self._at_once
        more = min(room, 2 * room - waiting) - self._in_hand
        self._queue.extend(islice(units, max(more, 0)))
        return self._in_hand

    @property
    def _in_hand(self) -> int:
        return len(self._queue) + sum(actor.units for actor in self._actors)

    def _start_actors(self) -> None:
        """Start actors until there are as many as units, and at most one for each replica.

        An actor gets no unit before it has started: a full cluster may keep it waiting.
        """
        while len(self._actors) < min(self._workers.replicas, self._in_hand):
            actor = _Actor(self._create(*self._shared))
            self._actors.append(actor)
            self._awaited[actor.handle.start.remote()] = (actor, None)

    @cached_property
    def _create(self) -> Callable[..., Any]:
        import ray

        workers = self._workers
        gpus = min(workers.gpus_per_worker, 1)
        # Ray counts CPUs in steps of 1/10,000; together the actors need no more than training does.
        cpus = floor(workers.cpus_per_worker / max(workers.gpus_per_worker, 1) * 10_000) / 10_000
        options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_concurrency": self._at_once,
            "scheduling_strategy": anywhere(),
            # Ray hides no GPU from an actor that asked for none, and TensorFlow takes all memory of those it sees.
            "runtime_env": {"env_vars": _ENVIRONMENT if gpus else {**_ENVIRONMENT, **WITHOUT_GPU}},
        }
        # The class is named after its work, because `ps` and Ray's dashboard show the name.
        named = type(self._make.__name__, (_Process,), {})
        create: Callable[..., Any] = ray.remote(**options)(named).remote
        return create

    @cached_property
    def _shared(self) -> tuple[Any, ...]:
        import ray

        # Once for all actors: the shards of a large dataset take a second to pickle.
        return self._task.name, self._make, *(ray.put(argument) for argument in self._arguments)

    def _hand_out(self) -> None:
        """Hand each unit of the queue to the actor with the fewest units, while one has room."""
        while self._queue:
            free = [actor for actor in self._actors if actor.has_started and actor.units < self._at_once]
            if not free:
                return
            actor, unit = min(free, key=lambda each: each.units), self._queue.popleft()
            actor.units += 1
            self._awaited[actor.handle.do.remote(unit.unit)] = (actor, unit)

    def _next_answer(self) -> tuple[_Numbered, Answer] | None:
        """Wait for an answer. Returns the unit and its answer, or None if an actor has started, or died."""
        import ray

        is_working = any(actor.units for actor in self._actors)
        ready, _ = ray.wait(list(self._awaited), timeout=None if is_working else self._workers.start_timeout_s)
        if not ready:
            workers = self._workers
            raise self._task.error(
                f"No worker to {self._task.name} started in {workers.start_timeout_s:g} s.",
                advice=f"It needs {workers.cpus_per_worker:g} CPU and {workers.gpus_per_worker} GPU for each "
                "worker (see `ray status`), or set workers.start_timeout_s higher.",
            )
        actor, unit = self._awaited[ready[0]]
        try:
            answer = ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TransferError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            self._requeue(actor, error)
            return None
        del self._awaited[ready[0]]
        if unit is None:
            actor.has_started = True
            return None
        actor.units -= 1
        return unit, answer

    def _requeue(self, actor: _Actor, error: Exception) -> None:
        """Put the units of an actor that died, or cannot be reached, back at the front of the queue."""
        self._deaths += 1
        if self._deaths > self._workers.max_failures:
            raise self._task.error(
                f"Workers to {self._task.name} died {self._deaths} times ({type(error).__name__}).",
                advice=f"Usually a machine is out of memory. {self._task.advice}",
            ) from error
        logger.warning(
            "A worker to %s died (%s), and another one is started. Deaths: %d of at most %d.",
            self._task.name,
            type(error).__name__,
            self._deaths,
            self._workers.max_failures,
        )
        units = [unit for each, unit in self._awaited.values() if each is actor and unit is not None]
        self._queue.extendleft(sorted(units, key=lambda unit: unit.position, reverse=True))
        self._end(actor)

    def _end(self, actor: _Actor) -> None:
        import ray

        # One that cannot be reached may still be alive.
        ray.kill(actor.handle)
        self._actors.remove(actor)
        self._awaited = {answer: (each, unit) for answer, (each, unit) in self._awaited.items() if each is not actor}


class _Process:
    """What runs in a process of its own on a machine of the cluster."""

    def __init__(self, task: str, make: Callable[..., Any], *arguments: Any) -> None:
        # Nothing that can fail: an error of a constructor reaches the driver as text only.
        self._task, self._make, self._arguments = task, make, arguments

    def start(self) -> None:
        """Make the function of a unit."""
        own_process()
        # The driver has no TensorFlow to unpickle its errors.
        with memory_explained(f"A worker to {self._task}"):
            self._work = self._make(*self._arguments)

    def do(self, unit: Any) -> Any:
        """Do one unit of work."""
        with memory_explained(f"A worker to {self._task}"):
            return self._work(unit)


@dataclass(eq=False)
class _Actor:
    """An actor as the driver sees it."""

    handle: Any
    has_started: bool = False
    units: int = 0
    """Units that it has, whose answers are awaited."""


@dataclass(frozen=True)
class _Numbered:
    """A unit, and its position among all units of a map."""

    position: int
    unit: Any


def _finished(started: tuple[Unit, Future[Answer]]) -> tuple[Unit, Answer]:
    unit, answer = started
    return unit, answer.result()
