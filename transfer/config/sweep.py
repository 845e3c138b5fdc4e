"""The `sweep` section: searched keys with their values, search algorithm, scheduler, and budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from transfer.config.section import Decides, PositiveFloat, Section

MAX_TRIALS = 10_000


class DomainConfig(Section, decides=Decides.SEARCH):
    """Values of one key: exactly one kind of domain. A plain list is short for `{choices: …}`."""

    choices: Annotated[list[Any], Field(min_length=1)] | None = None
    """A list of values."""
    uniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest number; uniformly distributed."""
    log_uniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest number, both above 0; log-uniformly distributed."""
    integers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Smallest and largest integer, both included."""

    @model_validator(mode="before")
    @classmethod
    def _choices_from_list(cls, value: object) -> object:
        if isinstance(value, list):
            return {"choices": value}
        if not isinstance(value, dict | DomainConfig):
            # Pydantic explains ValueError only.
            raise ValueError("expected a list of choices, or one of uniform, log_uniform and integers")  # noqa: TRY004
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> DomainConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(f"`{name}`" for name in type(self).model_fields)
            raise ValueError(f"{len(given)} of {known} are given, expected exactly one")
        if self.ends is not None and not self.ends[0] < self.ends[1]:
            raise ValueError(f"{given[0]} is {list(self.ends)}, and its first end must be below its second")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform is {self.log_uniform}, and both ends must be above zero")
        return self

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lowest and highest value; None for `choices`."""
        pair = self.uniform or self.log_uniform or self.integers
        return None if pair is None else (pair[0], pair[1])

    @property
    def size(self) -> int | None:
        """Number of values; None for a continuous domain."""
        if self.choices is not None:
            return len(self.choices)
        return None if self.integers is None else self.integers[1] - self.integers[0] + 1


# Options of each scheduler, with their defaults.
_SCHEDULERS: dict[str, dict[str, float]] = {
    "none": {},
    "asha": {"grace_epochs": 1, "reduction_factor": 3},
    "median": {"grace_epochs": 1, "min_trials": 3},
    "pbt": {"interval_epochs": 1, "quantile": 0.25},
}


class SchedulerConfig(Section, decides=Decides.SEARCH):
    """Early stopping of trials. A plain string is short for `{kind: …}`; options of another kind are refused."""

    kind: Literal["none", "asha", "median", "pbt"] = "none"
    """`none`: every trial runs all its epochs. `asha`: asynchronous successive halving (Li et al., 2020). `median`: a
    trial ends if its best result is worse than the median of the running means of the other trials (Golovin et al.,
    2017). `pbt`: population based training (Jaderberg et al., 2017); the worst trials continue from the weights of the
    best ones with changed values."""
    grace_epochs: Annotated[int, Field(ge=1)] | None = None
    """`asha` and `median`: smallest number of epochs before a trial is stopped. Default: 1."""
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """`asha`: at each rung 1 of this many trials continues; the epochs of rungs grow by this factor. Default: 3."""
    min_trials: Annotated[int, Field(ge=1)] | None = None
    """`median`: no trial is stopped before this many other trials have reached the same epoch. Default: 3."""
    interval_epochs: Annotated[int, Field(ge=1)] | None = None
    """`pbt`: number of epochs between two exchanges, in which the worst trials copy the best. Default: 1."""
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] | None = None
    """`pbt`: share of the trials that counts as the best, and share that counts as the worst. Default: 0.25."""

    @model_validator(mode="before")
    @classmethod
    def _options_of_its_kind(cls, value: object) -> object:
        value = {"kind": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or str(value.get("kind", "none")) not in _SCHEDULERS:
            return value  # the validation of the field reports it
        kind = value.get("kind", "none")
        for name in cls.model_fields:
            if name != "kind" and name not in _SCHEDULERS[kind] and value.get(name) is not None:
                owners = " and ".join(f"`{owner}`" for owner, options in _SCHEDULERS.items() if name in options)
                raise ValueError(f"{name} is an option of {owners}, and the scheduler is `{kind}`")
        return {**value, **{name: default for name, default in _SCHEDULERS[kind].items() if value.get(name) is None}}


class SweepConfig(Section, decides=Decides.SEARCH):
    """A search over keys of this configuration, with Ray Tune."""

    space: Annotated[dict[str, DomainConfig], Field(min_length=1)]
    """Values to search, by dotted key of this configuration (`phases.0.learning_rate`)."""
    search: Literal["grid", "random", "optuna"] = "random"
    """`grid`: every combination. `random`: random combinations, by `seed`. `optuna`: Optuna's TPE sampler (Bergstra et
    al., 2011) draws from the results so far (needs the extra `optuna`)."""
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    """Number of combinations for `random` and `optuna`. Default: 16. Not for `grid`, which tries all."""
    scheduler: SchedulerConfig = SchedulerConfig()
    metric: Literal["accuracy", "loss"] = "accuracy"
    """Metric that is optimised, on the validation split."""
    max_epochs: Annotated[int, Field(ge=1)] | None = None
    """Budget: the sweep ends after this number of epochs of all trials together. Default: no limit."""
    max_seconds: PositiveFloat | None = None
    """Budget: the sweep ends when an attempt at it has run for this time, in seconds. Default: no limit."""
    target: Annotated[float, Field(ge=0.0)] | None = None
    """The sweep ends once the metric of a trial is at least this good. Default: no target."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the search. Training uses `training.seed`, the same for all trials unless it is searched."""
    max_failures: Annotated[int, Field(ge=0), Decides.PLACEMENT] = 1
    """Number of retries of a failed trial. Then it is recorded as failed, and the sweep continues."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Cross-validation: with `k` folds, the result of a trial is the mean over k trainings, each validated on another
    fold of the training and validation splits together. `0`: one training, validated on the validation split."""
    concurrency: Annotated[Annotated[int, Field(ge=1)] | None, Decides.PLACEMENT] = None
    """Number of concurrent trials. Default: as many as the cluster can run."""
    gpus_per_trial: Annotated[Annotated[float, Field(gt=0.0, lt=1.0)] | None, Decides.PLACEMENT] = None
    """Share of a GPU for each process that trains trials. With 0.5, two processes share a GPU, which is efficient for
    small networks. Only with `workers: {count: 1, gpus_per_worker: 1}`. Default: whole GPUs."""
    mlflow: Annotated[str | None, Decides.PLACEMENT] = None
    """MLflow tracking URI, `http://…` or `sqlite:///…`, to which each finished trial is logged, too (needs the extra
    `mlflow`)."""

    @model_validator(mode="before")
    @classmethod
    def _trials_but_for_grid(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("search") != "grid" and value.get("trials") is None:
            return {**value, "trials": 16}
        return value

    @field_validator("space")
    @classmethod
    def _no_key_inside_another(cls, space: dict[str, DomainConfig]) -> dict[str, DomainConfig]:
        for key in space:
            inner = next((other for other in space if other.startswith(f"{key}.")), None)
            if inner is not None:
                raise ValueError(f"`{key}` and `{inner}` are both searched, and one is a part of the other")
        return space

    @field_validator("folds")
    @classmethod
    def _folds_are_several(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("folds is 1 and must be 0 (the validation split) or at least 2")
        return folds

    @model_validator(mode="after")
    def _search_fits_space(self) -> SweepConfig:
        if self.search != "grid":
            return self
        if self.trials is not None:
            raise ValueError(f"trials is {self.trials}, and `search: grid` tries every combination; leave it out")
        for key, domain in self.space.items():
            if domain.size is None:
                raise ValueError(f"`{key}` is continuous, and `search: grid` needs choices or integers for every key")
        if (self.combinations or 0) > MAX_TRIALS:
            raise ValueError(f"the grid has {self.combinations} combinations and at most {MAX_TRIALS} are allowed")
        return self

    @model_validator(mode="after")
    def _scheduler_fits_search(self) -> SweepConfig:
        if self.scheduler.kind == "pbt":
            if self.search != "random":
                raise ValueError(f"search is `{self.search}`, and `scheduler: pbt` begins with `random` values")
            if self.folds:
                raise ValueError(f"folds is {self.folds}, and `scheduler: pbt` needs trials of one training: 0")
            if self.concurrency is not None:
                raise ValueError(f"concurrency is {self.concurrency}, and `scheduler: pbt` keeps all trials in flight")
        return self

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> SweepConfig:
        if self.metric == "accuracy" and self.target is not None and self.target > 1.0:
            raise ValueError(f"target is {self.target:g} and an accuracy is at most 1")
        return self

    @property
    def combinations(self) -> int | None:
        """Number of different combinations; None if a domain is continuous."""
        total = 1
        for domain in self.space.values():
            if domain.size is None:
                return None
            total *= domain.size
        return total

    @property
    def trial_count(self) -> int:
        """Number of trials of the sweep; no combination is tried twice."""
        return min(count for count in (self.trials, self.combinations) if count is not None)
