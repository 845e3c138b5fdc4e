"""Settings from outside that would change what is computed: the product's own are used, and what they replace is said.

Keras reads `keras.json` (in KERAS_HOME, or `~/.keras`) and environment variables; TensorFlow and what is below it read
environment variables. The same configuration would learn something else on a machine that has another of them.

`transfer/__init__.py` calls `use_own_environment`, so that it comes before TensorFlow in the command line, in a worker
and in any process that a job starts. What is in `keras.json` can only be replaced after Keras has read it: who loads a
network calls `use_own_keras`. Left alone is what decides places and speed, or only the last digits (oneDNN, the choice
of convolution algorithms), and what works on nothing that is used here (`XLA_FLAGS`, `TF_USE_LEGACY_KERAS`). KERAS_HOME
stays the place of downloaded weights.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from transfer.errors import BackboneError, ConfigError

logger = logging.getLogger(__name__)

OWN_ENVIRONMENT: dict[str, str | None] = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_NNX_ENABLED": "false",  # Keras does not start with it where flax is missing
    "KERAS_MAX_EPOCHS": None,
    "KERAS_MAX_STEPS_PER_EPOCH": None,
    "TF_XLA_FLAGS": None,  # compiles everything: rounding, and on CPUs a twentieth of the speed
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": None,  # kernels would keep weights of before a training step
    # Less precise products of float32 than TensorFlow's own choice, or more precise ones.
    "TF_SET_ONEDNN_FPMATH_MODE": None,
    "ONEDNN_DEFAULT_FPMATH_MODE": None,
    "DNNL_DEFAULT_FPMATH_MODE": None,
    "NVIDIA_TF32_OVERRIDE": None,
    # Sums in half precision where `training.mixed_precision` is on.
    "TF_CONV2D_USE_FP16_ACCUMULATE": None,
    "TF_FP16_CONV_USE_FP32_COMPUTE": None,
    "TF_FP16_MATMUL_USE_FP32_COMPUTE": None,
}
"""What environment variables are set to; None: they are removed."""
OWN_KERAS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
"""Settings of Keras that hold whatever `keras.json` says, by their names in `keras.config`."""
_ACCEPTED_BY_KERAS = {
    "floatx": ("float16", "float32", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}


def use_own_environment() -> None:
    """Set the environment variables of this process and of those that it starts; log those that were otherwise."""
    backend = _read_keras_json().get("backend", "tensorflow")
    if "KERAS_BACKEND" not in os.environ and backend != "tensorflow":
        _say(f"`backend` in {_keras_json()}", backend, "tensorflow")
    for name, own in OWN_ENVIRONMENT.items():
        found = os.environ.get(name)
        if found is not None and found != own:
            _say(f"The environment variable {name}", found, own or "TensorFlow's own choice")
            if "tensorflow" in sys.modules:
                logger.warning("TensorFlow was imported before and may have read it: import `transfer` first.")
        if own is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = own


def use_own_keras() -> None:
    """Set what Keras took from `keras.json`, and log what was otherwise.

    Raises BackboneError when this process has imported Keras on another backend than TensorFlow.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        raise BackboneError(
            f"This process has imported Keras on the backend {keras.config.backend()!r}; networks run on 'tensorflow'.",
            advice="Import `transfer` before Keras, or run the job in a process of its own.",
        )
    for name, own in OWN_KERAS.items():
        found = getattr(keras.config, name)()
        if found != own:
            _say(f"Keras's `{name}` (set in {_keras_json()} or by this process)", found, own)
            getattr(keras.config, f"set_{name}")(own)


def check_keras_json() -> None:
    """Raise ConfigError when `keras.json` holds what Keras refuses to start with."""
    settings = _read_keras_json()
    wrong = [name for name, known in _ACCEPTED_BY_KERAS.items() if settings.get(name, known[0]) not in known]
    if not isinstance(settings.get("epsilon", 1e-7), float):
        wrong.append("epsilon")
    if wrong:
        raise ConfigError(
            f"{_keras_json()} has `{wrong[0]}: {settings[wrong[0]]}`, with which Keras does not start.",
            advice="Correct the file or remove it. Nothing of it is needed here.",
        )


def _say(setting: str, found: Any, own: Any) -> None:
    logger.warning("%s is %s; %s is used, so that results do not depend on it.", setting, found, own)


def _keras_json() -> Path:
    home = Path("~").expanduser()
    keras_home = os.environ.get("KERAS_HOME") or (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras"  # noqa: S108
    return Path(keras_home, "keras.json").expanduser()


def _read_keras_json() -> dict[str, Any]:
    """What the file says; empty where there is none, or none that Keras reads."""
    try:
        settings = json.loads(_keras_json().read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}
