"""The only uses of private parts of Keras, as read in the release VERSION.

Keras has no public way to walk the calls of layers, or the layers inside layers. Read the source of a new release
before changing VERSION and the pin in pyproject.toml; tests/unit/runtime/test_private.py tests that the parts exist.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from keras.src.applications.efficientnet import WEIGHTS_HASHES
from keras.src.backend.common import global_state
from keras.src.backend.config import keras_home

__all__ = ["WEIGHTS_HASHES"]

VERSION = "3.15"
"""The release of Keras that was read."""


def call_of(tensor: Any) -> Any:
    """The call of a layer that made a symbolic tensor: Keras's node, with `operation`, `arguments` and `outputs`."""
    history = tensor._keras_history  # noqa: SLF001
    return history.operation._inbound_nodes[history.node_index]  # noqa: SLF001


def inner_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """All layers of a network, including layers inside nested models and other layers."""
    return list(network._flatten_layers(include_self=False))  # noqa: SLF001


def direct_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside a layer or model, without those inside them."""
    return list(layer._flatten_layers(include_self=False, recursive=False))  # noqa: SLF001


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Variables of a layer, without inner layers, that training can change, even if the layer is frozen now."""
    return list(layer._trainable_variables)  # noqa: SLF001


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Variables of a layer, without inner layers, in the order in which it saves them."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]  # noqa: SLF001


def weights_folder() -> Path:
    """Folder into which Keras downloads weights."""
    return Path(keras_home(), "models")


@contextmanager
def fresh_layer_names() -> Iterator[None]:
    """Number unnamed layers (`conv2d_7`) as in a new process, so that their names can be used in a configuration.

    Afterwards the counters continue after the larger of both uses, so that later layers never share a name with these.
    """
    key = "object_name_uids"
    before = global_state.get_global_attribute(key) or {}
    global_state.set_global_attribute(key, None)
    try:
        yield
    finally:
        # Of the kind that Keras counts with, for where nothing was named meanwhile.
        counters = global_state.get_global_attribute(key, default=defaultdict(int), set_to_default=True)
        for prefix, count in before.items():
            counters[prefix] = max(count, counters.get(prefix, 0))


def download_target(error: BaseException) -> str | None:
    """Target path of the file, if `error` comes from the download function of Keras; else None.

    The exceptions have no path and may be of any class, so the path is read from the local variables of the failed
    call.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "get_file":
            return str(frame.f_locals.get("download_target"))
    return None
