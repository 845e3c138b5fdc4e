"""The types in which networks compute."""

from __future__ import annotations

import keras


def set_precision(mixed_precision: str) -> None:
    """Choose the dtype that layers built from now on compute in; variables stay float32."""
    keras.mixed_precision.set_dtype_policy("float32" if mixed_precision == "off" else f"mixed_{mixed_precision}")
