"""Networks of keras-hub: presets by name (`hub:dinov2_small`), and folders that `save_to_preset` wrote.

A folder has `config.json` (the network's class and its arguments), `model.weights.h5` and, where the preset says how
images are prepared, `image_converter.json`. Keras makes only classes of Keras and keras-hub from these: no code of a
folder runs.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from transfer.backbone.encoders import as_chain
from transfer.backbone.files import (
    CONFIG_OF_PRESET,
    RANGES,
    LoadedNetwork,
    Preprocessing,
    all_weights_or_none,
    fixed_seed,
    is_s3,
    local_folder,
    nearest,
)
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.config.image_input import Fit
from transfer.config.paths import PRESET_PREFIX, path_here
from transfer.errors import BackboneError
from transfer.runtime.distribution import install_extra
from transfer.runtime.keras_private import fresh_layer_names, inner_layers, own_variables

CONVERTER_OF_PRESET = "image_converter.json"
MAX_DESCRIPTION_BYTES = 16 * 1024**2
IMAGE_SHAPE = {"image_shape", "input_shape"}
"""Names of the argument with the shape of images; a network of keras-hub has one of them."""

logger = logging.getLogger(__name__)


def load_preset(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> LoadedNetwork:
    """The network of a preset for images of `config.image_size`, cut into blocks, with the preset's preprocessing.

    With `weights: none` its weights are random, the same in every process. Raises BackboneError if keras-hub is not
    installed, there is no such preset, it is no network of images, or its network takes no images of this size.
    """
    hub = _keras_hub()
    place = config.model.removeprefix(PRESET_PREFIX)
    # keras-hub prints downloads on stdout, which is reserved for the output of the command.
    with tempfile.TemporaryDirectory(prefix="transfer-") as scratch, redirect_stdout(sys.stderr):
        if place == config.model:
            folder = local_folder(place, directory=Path(scratch), storage=storage) if is_s3(place) else path_here(place)
            # Absolute: keras-hub takes a plain word for the name of a preset.
            kind, place = _class_of_folder(config, folder, hub), str(folder.absolute())
        else:
            kind = _class_of_name(place, hub)
        with fresh_layer_names(), fixed_seed():
            tower = _for_images(config, _tower(_read(config, kind, place)))
        preprocessing = _preprocessing(config, _converter(config, place, hub))
    height, width, patch = *config.image_input().shape[:2], _patch(tower.get_config())
    return LoadedNetwork(
        config.model.removeprefix(PRESET_PREFIX).rstrip("/").rpartition("/")[2],
        as_chain(_from_one_image(config, tower)),
        preprocessing,
        is_features=True,
        patches=(height // patch) * (width // patch),
    )


def _keras_hub() -> ModuleType:
    try:
        import keras_hub
    except ImportError as error:
        raise BackboneError(
            f"base.model names a preset of keras-hub, which cannot be imported: {error}", advice=install_extra("hub")
        ) from error
    module: ModuleType = keras_hub
    return module


def _kinds(hub: ModuleType) -> list[Any]:
    """The classes of networks that take an image, and of pairs of a network for images and one for texts."""
    classes = [
        kind for kind in vars(hub.models).values() if inspect.isclass(kind) and issubclass(kind, hub.models.Backbone)
    ]
    return [kind for kind in classes if _takes_images(kind)]


def _takes_images(kind: Any) -> bool:
    arguments = inspect.signature(kind.__init__).parameters.keys()
    return bool(arguments & IMAGE_SHAPE) or {"vision_encoder", "text_encoder"} <= arguments


def _class_of_name(name: str, hub: ModuleType) -> Any:
    by_name = {preset: kind for kind in _kinds(hub) for preset in kind.presets}
    if name not in by_name:
        raise BackboneError(
            f"base.model is {PRESET_PREFIX}{name}, and keras-hub has no preset of that name for images.",
            advice=f"It has {len(by_name)}, such as {PRESET_PREFIX}dinov2_small.{nearest(name, by_name)}",
        )
    return by_name[name]


def _class_of_folder(config: BaseNetworkConfig, folder: Path, hub: ModuleType) -> Any:
    description = _description(folder / CONFIG_OF_PRESET)
    name = str(description.get("registered_name"))
    kind = keras.saving.get_registered_object(name) if name.startswith("keras_hub>") else None
    if not (inspect.isclass(kind) and issubclass(kind, hub.models.Backbone) and _takes_images(kind)):
        raise BackboneError(
            f"{config.model} has a {CONFIG_OF_PRESET} of {name!r}, which is no network of keras-hub for images.",
            advice="Write the folder with keras-hub: `Backbone.from_preset(…).save_to_preset(folder)`.",
        )
    return kind


def _description(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"it has more than {MAX_DESCRIPTION_BYTES:,} bytes")  # noqa: TRY301
        description = json.loads(path.read_bytes())
        if not isinstance(description, dict):
            raise TypeError("it is no JSON object")  # noqa: TRY301
    except (OSError, ValueError, TypeError) as error:
        raise BackboneError(f"{path} cannot be read: {error}", advice="Write or download the preset again.") from error
    return description


def _read(config: BaseNetworkConfig, kind: Any, place: str) -> keras.Model:
    """The network as the preset has it."""
    try:
        with all_weights_or_none():
            return kind.from_preset(place, load_weights=config.weights != "none")
    # Whatever is wrong with a file, and each service that presets are downloaded from, has errors of its own.
    except Exception as error:
        if config.model.startswith(PRESET_PREFIX):
            raise BackboneError(
                f"The preset {config.model} could not be brought here: {_first_line(error)}",
                advice="Where this machine reaches no internet, write it into a folder elsewhere, with "
                f"`keras_hub.models.{kind.__name__}.from_preset({place!r}).save_to_preset(folder)` and "
                f"`keras_hub.layers.ImageConverter.from_preset({place!r}).save_to_preset(folder)`, and set base.model "
                "to that folder (local or s3://).",
            ) from error
        raise BackboneError(
            f"{config.model} cannot be read as a preset of keras-hub: {_first_line(error)}",
            advice="Write or download the folder again.",
        ) from error


def _tower(backbone: keras.Model) -> keras.Model:
    """The network itself, or, of a pair for images and texts, the one for images."""
    return getattr(backbone, "vision_encoder", backbone)


def _for_images(config: BaseNetworkConfig, tower: keras.Model) -> keras.Model:
    """The network for images of `config.image_size`, in the precision of `set_precision`.

    Learned embeddings of positions are interpolated.
    """
    shape, policy = config.image_input().shape, keras.mixed_precision.dtype_policy()
    described = tower.get_config()
    (argument,) = IMAGE_SHAPE & described.keys()
    own, patch = tuple(described[argument]), _patch(described)
    _check_size(config, described)
    if own == shape and tower.dtype_policy == policy:
        return tower
    old, new = ([(side or 0) // patch for side in sides[:2]] for sides in (own, shape))
    try:
        built = type(tower).from_config(described | {argument: shape, "dtype": policy})
        _copy_weights(tower, built, old=old, new=new)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise BackboneError(
            f"keras-hub refuses {config.model} for images of shape {shape}: {_first_line(error)}",
            advice=f"The preset was made for {own}: set base.image_size and base.channels to that.",
        ) from error
    return built


def _check_size(config: BaseNetworkConfig, described: dict[str, Any]) -> None:
    height, width, _ = config.image_input().shape
    step, square = _step(described)
    if height % step == width % step == 0 and (height == width or not square):
        return
    below = max(height // step, 1) * step
    raise BackboneError(
        f"base.image_size is {config.image_size}, and {config.model} takes {'squares' if square else 'images'} whose "
        f"sides are multiples of {step}.",
        advice=f"The nearest two are {below} and {below + step}.",
    )


def _step(described: dict[str, Any]) -> tuple[int, bool]:
    """What the sides of images must be multiples of, and whether these must be squares."""
    if "layerwise_strides" in described:
        return prod(described["layerwise_strides"]), True
    # Each stage of a Swin but the last halves the sides.
    halvings = len(described["depths"]) - 1 if "window_size" in described else 0
    # DINOv3 says so nowhere, and mixes up the shapes of others.
    return _patch(described) * 2**halvings, "rope_theta" in described


def _patch(described: dict[str, Any]) -> int:
    """Side of a patch in pixels; 1 for networks without patches."""
    patch = described.get("patch_size", 1)
    return int(patch[0] if isinstance(patch, list | tuple) else patch)


def _copy_weights(source: keras.Model, target: keras.Model, *, old: list[int], new: list[int]) -> None:
    """Give `target` the weights of `source`, the same network for another size of images, in patches."""
    for given, taken in zip(inner_layers(source), inner_layers(target), strict=True):
        store: dict[str, Any] = {}
        given.save_own_variables(store)
        variables = own_variables(taken)
        taken.load_own_variables(
            {key: _fitted(keras.ops.convert_to_numpy(x), variables[int(key)], old, new) for key, x in store.items()}
        )


def _fitted(value: np.ndarray, variable: keras.Variable, old: list[int], new: list[int]) -> np.ndarray:
    """A weight for another image size: embeddings [..., positions, channels] are interpolated over the image."""
    if value.shape == tuple(variable.shape):
        return value
    if not keras.backend.is_float_dtype(variable.dtype):
        return np.asarray(variable.numpy())  # Numbers of the positions.
    *_, positions, channels = value.shape
    rows = value.reshape(positions, channels)
    leading = positions - prod(old)
    image = keras.ops.image.resize(rows[leading:].reshape(1, *old, channels), new, interpolation="bicubic")
    image = keras.ops.convert_to_numpy(image).reshape(prod(new), channels)
    return np.concatenate([rows[:leading], image]).reshape(variable.shape)


def _from_one_image(config: BaseNetworkConfig, tower: keras.Model) -> keras.Model:
    inputs, outputs = keras.tree.flatten(tower.inputs), keras.tree.flatten(tower.outputs)
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
        raise BackboneError(
            f"{config.model} has {len(inputs)} inputs and {len(outputs)} outputs; a base has one image as its input "
            "and one output.",
            advice="Use a preset that answers features of images.",
        )
    return keras.Model(inputs[0], outputs[0], name=tower.name)


def _converter(config: BaseNetworkConfig, place: str, hub: ModuleType) -> Any:
    """The preset's ImageConverter; None if it has none."""
    if config.model.startswith(PRESET_PREFIX):
        try:
            return hub.layers.ImageConverter.from_preset(place)
        except (ValueError, FileNotFoundError):
            return None
    path = Path(place, CONVERTER_OF_PRESET)
    if not path.is_file():
        return None
    try:
        converter = keras.saving.deserialize_keras_object(_description(path))
    except (ValueError, TypeError, KeyError) as error:
        raise BackboneError(
            f"{CONVERTER_OF_PRESET} of {config.model} cannot be read: {_first_line(error)}",
            advice="Write or download the preset again.",
        ) from error
    return converter if isinstance(converter, hub.layers.ImageConverter) else None


def _preprocessing(config: BaseNetworkConfig, converter: Any) -> Preprocessing:
    """What the converter does to pixels: a factor and a summand for each channel.

    The size and the fit of images are the configuration's; the log says where the preset's are others.
    """
    if converter is None:
        if config.preprocessing == "auto":
            raise BackboneError(
                f"{config.model} does not say how pixels are prepared: it has no {CONVERTER_OF_PRESET}.",
                advice="Add it with `keras_hub.layers.ImageConverter.from_preset(…).save_to_preset(folder)`, or set "
                "base.preprocessing to the range that its weights expect.",
            )
        return RANGES["0..255"]
    image_input = config.image_input()
    height, width = converter.image_size or image_input.shape[:2]
    fit: Fit = "crop" if converter.crop_to_aspect_ratio else "pad" if converter.pad_to_aspect_ratio else "stretch"
    made_for = replace(image_input, height=height, width=width, fit=fit, antialias=converter.antialias)
    if made_for != image_input:
        logger.info("%s was made for images of %s; base has %s.", config.model, made_for.title, image_input.title)
    scale = np.asarray(1.0 if converter.scale is None else converter.scale, np.float32)
    offset = np.asarray(0.0 if converter.offset is None else converter.offset, np.float32)
    name = f"keras_hub: {json.dumps([scale.tolist(), offset.tolist()])}"
    return Preprocessing(name, lambda images: images * scale + offset)


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
