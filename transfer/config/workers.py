"""The section `workers`: in how many processes a model is trained, and what happens when one of them fails."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from transfer.config.section import PositiveFloat, Section


class WorkersConfig(Section):
    """In how many processes training runs."""

    count: Annotated[int, Field(ge=0)] = 0
    """`0`: in this process, without Ray. `1`: one Ray worker. `n`: n Ray workers, which train one model together."""
    min_count: Annotated[int, Field(ge=1)] | None = None
    """Fewest workers that a run starts with, or goes on with after a failure, while there is no room for `count`; it
    takes more as they come. Default: `count`."""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """GPUs, and so replicas, of each worker."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray reserves for each worker."""
    collectives: Literal["auto", "ring", "nccl"] = "auto"
    """How workers add their gradients up. `auto`: NCCL between GPUs, else TensorFlow's ring. `ring` where NCCL does not
    work, as between machines that it cannot connect."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after a worker dies, before the job fails."""
    start_timeout_s: PositiveFloat = 600.0
    """Fail when the cluster cannot start the workers in this time."""
    hang_timeout_s: PositiveFloat = 120.0
    """A worker that does not answer for this time is ended, as if it had died."""
    stall_timeout_s: PositiveFloat = 1800.0
    """Where no worker of a group ends a step, a part of its validation or a checkpoint for this time, the one that
    holds up the others is ended, as if it had died. One call may hold 100 steps: give it more time than those take."""

    @model_validator(mode="after")
    def _fewest_are_not_more(self) -> WorkersConfig:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"workers.min_count is {self.min_count} and workers.count {self.count}, which is fewer")
        return self

    @property
    def counts(self) -> range:
        """Numbers of workers that may train together."""
        return range(self.count if self.min_count is None else self.min_count, self.count + 1)

    @property
    def replicas(self) -> int:
        """Copies of the model that are trained together."""
        return max(self.count, 1) * max(self.gpus_per_worker, 1)
