"""Outside settings that would change results: this project replaces them by its own, and logs that.

Keras reads `keras.json` (in KERAS_HOME, or `~/.keras`) and environment variables; TensorFlow and its libraries read
environment variables. With other values the same configuration would learn something else on another machine.

`transfer/__init__.py` calls `use_own_environment`, so it runs before TensorFlow is imported in the command line, in
workers and in all processes of a job. Settings of `keras.json` can only be replaced after Keras has read them, so code
that loads a network calls `use_own_keras`. Settings of places and speed stay, and so do those that only change the last
digits (oneDNN, the choice of convolution algorithms) or have no effect here (`XLA_FLAGS`, `TF_USE_LEGACY_KERAS`).
Weights are still downloaded to KERAS_HOME.
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
    "KERAS_NNX_ENABLED": "false",  # with it Keras cannot be imported without flax
    "KERAS_MAX_EPOCHS": None,
    "KERAS_MAX_STEPS_PER_EPOCH": None,
    "TF_XLA_FLAGS": None,  # compiles everything: other rounding, and a twentieth of the speed on CPUs
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": None,  # kernels would use weights of an earlier training step
    # Matrix products of float32 with less or more precision than TensorFlow's default.
    "TF_SET_ONEDNN_FPMATH_MODE": None,
    "ONEDNN_DEFAULT_FPMATH_MODE": None,
    "DNNL_DEFAULT_FPMATH_MODE": None,
    "NVIDIA_TF32_OVERRIDE": None,
    # Sums in half precision if `training.mixed_precision` is on.
    "TF_CONV2D_USE_FP16_ACCUMULATE": None,
    "TF_FP16_CONV_USE_FP32_COMPUTE": None,
    "TF_FP16_MATMUL_USE_FP32_COMPUTE": None,
}
"""Values of environment variables; None: the variable is removed."""
OWN_KERAS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
"""Settings of Keras that replace those of `keras.json`, by their names in `keras.config`."""
_ACCEPTED_BY_KERAS = {
    "floatx": ("float16", "float32", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}


def use_own_environment() -> None:
    """Set the environment variables of this process and its children; log those that had other values."""
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
    """Replace the settings that Keras read from `keras.json`; log those that had other values.

    Raises BackboneError if this process has imported Keras with another backend than TensorFlow.
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
    """Raise ConfigError if `keras.json` has values with which Keras cannot be imported."""
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
    """Content of the file; empty if there is no file, or none that Keras can read."""
    try:
        settings = json.loads(_keras_json().read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}
