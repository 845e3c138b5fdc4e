"""The types in which networks compute."""

from __future__ import annotations

from typing import Any

import keras

from transfer.backbone.graph import inner_layers

HALF = {"float16", "bfloat16"}


def set_precision(mixed_precision: str) -> None:
    """Choose the dtype that layers built from now on compute in; variables stay float32."""
    keras.mixed_precision.set_dtype_policy("float32" if mixed_precision == "off" else f"mixed_{mixed_precision}")


def precision() -> str:
    """What `set_precision` chose: `off`, `bfloat16` or `float16`."""
    policy = keras.mixed_precision.dtype_policy()
    return str(policy.compute_dtype) if policy.compute_dtype in HALF else "off"


def computes_in_half(network: keras.Model) -> bool:
    """Whether any layer of a network, nested ones too, computes in float16 or bfloat16."""
    # Models and inputs only hand on what they are given, whatever their policy says.
    return any(
        layer.compute_dtype in HALF
        for layer in inner_layers(network)
        if not isinstance(layer, keras.Model | keras.layers.InputLayer)
    )


def in_chosen_precision(network: keras.Model) -> keras.Model:
    """The network with each layer computing as `set_precision` chose, whatever it was saved with; weights are kept.

    The same network where nothing differs. Raises ValueError for layers that cannot change, which are quantised ones.
    """
    config = network.get_config()
    wanted = _with_policy(config, keras.mixed_precision.dtype_policy())
    if wanted == config:
        return network
    # A layer takes its type when it is made, and those inside it take theirs from it: so all are made anew.
    changed: keras.Model = type(network).from_config(wanted)
    changed.set_weights(network.get_weights())
    return changed


def _with_policy(config: Any, policy: keras.DTypePolicy) -> Any:
    """The configuration of layers with another policy for all that compute with floating point."""
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(value, policy) for value in config)
    if not isinstance(config, dict):
        return config
    kind, inner = config.get("class_name"), config.get("config", {})
    if kind == "DTypePolicy" and "float" in inner["name"]:
        return keras.dtype_policies.serialize(policy)
    if kind == "QuantizedDTypePolicy" and inner["source_name"] != policy.name:
        raise ValueError(
            f"it has layers that are quantised from {inner['source_name']} and cannot become {policy.name}"
        )
    changed = {key: _with_policy(value, policy) for key, value in config.items()}
    if kind == "InputLayer" and keras.backend.is_float_dtype(inner["dtype"]):
        changed["config"]["dtype"] = policy.variable_dtype
    return changed
