"""Distributed transfer learning for images with TensorFlow and Keras 3 on Ray.

`import transfer` is cheap: what it exports is loaded when it is first used, TensorFlow and Ray by the jobs that need
them. The command line and `jobs/` are thin layers over `transfer.jobs`, and so are these functions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from transfer.runtime.numerics import use_own_environment

if TYPE_CHECKING:
    from transfer.api.classifier import ImageClassifier
    from transfer.api.images import Prediction
    from transfer.api.jobs import (
        find_learning_rate,
        inspect,
        integers,
        load_model,
        load_run,
        log_uniform,
        nightly,
        screen,
        sweep,
        train,
        uniform,
    )
    from transfer.api.results import LearningRates, Model, Screen, Sweep, TrainedRun
    from transfer.config import Config, load_config
    from transfer.errors import TransferError

__version__ = "0.1.0"
__all__ = [
    "Config",
    "ImageClassifier",
    "LearningRates",
    "Model",
    "Prediction",
    "Screen",
    "Sweep",
    "TrainedRun",
    "TransferError",
    "find_learning_rate",
    "inspect",
    "integers",
    "load_config",
    "load_model",
    "load_run",
    "log_uniform",
    "nightly",
    "screen",
    "sweep",
    "train",
    "uniform",
]

_MODULES = {
    "transfer.api.classifier": {"ImageClassifier"},
    "transfer.api.images": {"Prediction"},
    "transfer.api.results": {"LearningRates", "Model", "Screen", "Sweep", "TrainedRun"},
    "transfer.config": {"Config", "load_config"},
    "transfer.errors": {"TransferError"},
}
_FUNCTIONS = "transfer.api.jobs"

# Before anything can import TensorFlow.
use_own_environment()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), _FUNCTIONS)
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
