"""Find, read and check the pretrained network of a configuration."""

from __future__ import annotations

from typing import Any, NoReturn

import keras
import tensorflow as tf

from transfer.backbone.applications import known_networks, load_application
from transfer.backbone.backbone import Backbone, pooled
from transfer.backbone.batch_norms import batch_norms_of, watch_batch_norms
from transfer.backbone.blocks import nodes_in_order
from transfer.backbone.classifier import refuse_classifier, split_classifier
from transfer.backbone.efficientnet_lite import WEIGHTS_ORIGIN
from transfer.backbone.files import HDF5_SUFFIXES, RANGES, LoadedNetwork, Preprocessing, is_preset, is_s3, nearest
from transfer.backbone.hub import is_remote_handle, load_saved_model
from transfer.backbone.keras_file import load_keras_file
from transfer.backbone.presets import load_preset
from transfer.backbone.projections import projections_in
from transfer.config import BaseNetworkConfig, Config, Depth, StorageConfig
from transfer.config.paths import PRESET_PREFIX, is_model_file, path_here
from transfer.errors import BackboneError
from transfer.runtime.numerics import use_own_keras


def describe(backbone: Backbone) -> list[dict[str, Any]]:
    """One row a block, from the input to the output, of JSON's own types.

    depth: the `unfreeze` that trains this block and all blocks after it. block: its name. layers: their names, in
    order. parameters: their number. flops: multiply-adds for one image (`network_flops`). flops_share: share of the
    block in the whole network, 0 to 1. trained_flops_share: share of the trained part. output_shape: for one image.
    feature_bytes: size of the block's output for one image, as float32. cached_bytes: size of the cached features of
    one image at this depth, the output of the block before; 0 if nothing is frozen. lora_attention, lora_dense:
    parameters that adapters of the block's layers have for each rank, by `targets`.
    """
    layers = {layer.name: layer for layer in backbone.network.layers}
    total = sum(block.flops for block in backbone.blocks)
    rows: list[dict[str, Any]] = []
    below = cached_bytes = 0
    for index, block in enumerate(backbone.blocks):
        adaptable = projections_in(layers[name] for name in block.layers if name in layers)
        attends = sum(each.parameters_a_rank for each in adaptable if each.in_attention)
        rows.append(
            {
                "depth": len(backbone.blocks) - index,
                "block": block.name,
                "layers": list(block.layers),
                "parameters": block.parameters,
                "flops": block.flops,
                "flops_share": block.flops / total if total else 0.0,
                "trained_flops_share": (total - below) / total if total else 0.0,
                "output_shape": list(block.output_shape[1:]),
                "feature_bytes": block.feature_bytes,
                "cached_bytes": cached_bytes,
                "lora_attention": attends,
                "lora_dense": sum(each.parameters_a_rank for each in adaptable) - attends,
            }
        )
        below += block.flops
        cached_bytes = block.feature_bytes
    return rows


def build_backbone(config: Config) -> Backbone:
    """Load the base of a configuration, pooled as its head wants it, in the scope of the current strategy.

    It sees images as the dataset of the configuration has them. Raises what `load_backbone` raises.
    """
    depth = config.dataset.image_depth
    return pooled(load_backbone(config.base, storage=config.storage, depth=depth), config.head.pooling)


def load_backbone(
    config: BaseNetworkConfig, *, storage: StorageConfig | None = None, depth: Depth = "reject"
) -> Backbone:
    """Load the network of `config` in the scope of the current distribution strategy.

    `storage`: how `s3://` files are reached (endpoint and region); credentials come from the environment. `depth`: how
    images of 16 bits a channel become its input. Raises BackboneError if the network is unknown, cannot be read, or
    cannot serve as a base; StorageError from S3.
    """
    use_own_keras()
    loaded = _load(config, storage)
    network = _tap(loaded, config.tap) if config.tap else loaded.network
    _check_output(loaded.name, network)
    if not (config.tap or config.accept_head or loaded.is_features):
        refuse_classifier(loaded.name, network)
    return _backbone(config, loaded, network, depth)


def load_classifier(
    config: BaseNetworkConfig, *, storage: StorageConfig | None = None, depth: Depth = "reject"
) -> tuple[Backbone, keras.Model]:
    """Load a network with the classifier that it was trained with: the base, and a network from features to logits.

    Arguments and errors are those of `load_backbone`. Raises BackboneError for `config.tap`, and if the outputs are no
    logits or probabilities of classes of which one is right.
    """
    use_own_keras()
    if config.weights == "none":
        raise BackboneError(
            f"base.weights is `none`, so {config.model} would classify with random weights.",
            advice="Remove base.weights, or set it to a file of weights.",
        )
    if config.tap:
        raise BackboneError(
            f"base.tap is {config.tap!r}, and a classifier that is used as it is ends where {config.model} ends.",
            advice="Remove base.tap.",
        )
    loaded = _load(config, storage, include_top=True)
    network, classifier = split_classifier(loaded.name, loaded.network)
    return _backbone(config, loaded, network, depth), classifier


def weights_origin(config: BaseNetworkConfig) -> str:
    """Source and licence of the weights of a base, in words, as far as they are known."""
    if config.model not in known_networks() or config.weights_file is not None:
        return f"{config.weights_title}; its licence is its author's"
    if config.weights == "none":
        return "random"
    if config.model == "EfficientNetLite0":
        return WEIGHTS_ORIGIN
    return (
        f"ImageNet weights of keras.applications.{config.model}; https://keras.io/api/applications names their source "
        "and licence"
    )


def _backbone(config: BaseNetworkConfig, loaded: LoadedNetwork, network: keras.Model, depth: Depth) -> Backbone:
    preprocessing = loaded.preprocessing if config.preprocessing == "auto" else RANGES[config.preprocessing]
    _check_channels(config, preprocessing)
    starts_random = config.weights == "none" and bool(batch_norms_of(network))
    if starts_random:
        watch_batch_norms(network)
    return Backbone(
        name=loaded.name,
        image_input=config.image_input(depth),
        network=network,
        preprocess=preprocessing,
        starts_random=starts_random,
        patches=loaded.patches,
    )


def _load(config: BaseNetworkConfig, storage: StorageConfig | None, *, include_top: bool = False) -> LoadedNetwork:
    """The network; `include_top`: one of keras.applications with its classifier, which files have or lack anyway."""
    model = config.model
    is_file = model.endswith((".keras", *HDF5_SUFFIXES))
    if config.custom_objects is not None and not is_file:
        raise BackboneError(
            f"base.custom_objects is {config.custom_objects!r} and {model} is no .keras or .h5 file, which alone have "
            "layers of other packages.",
            advice="Remove base.custom_objects, or check base.model.",
        )
    if model in known_networks():
        return load_application(config, storage=storage, include_top=include_top)
    if model.endswith(".weights.h5"):
        _refuse_weights_alone(model)
    if config.options:
        raise BackboneError(
            f"base.options are given and {model} is not a network of keras.applications, which alone takes options.",
            advice="Remove base.options, or check base.model." + nearest(model, known_networks()),
        )
    if config.weights_file is not None:
        raise BackboneError(
            f"base.weights is {config.weights!r} and {model} is not a network of keras.applications, which alone takes "
            "other weights.",
            advice="Remove base.weights, or check base.model." + nearest(model, known_networks()),
        )
    if is_file:
        return load_keras_file(config, storage=storage)
    if model.startswith(PRESET_PREFIX) or (is_model_file(model) and is_preset(model, storage)):
        return load_preset(config, storage=storage)
    if is_s3(model) or is_remote_handle(model) or (is_model_file(model) and path_here(model).exists()):
        return load_saved_model(config, storage=storage)
    raise BackboneError(
        f"base.model is {model!r}, which is neither a network of keras.applications nor a file or folder that exists.",
        advice="Name a network, a preset of keras-hub (hub:NAME, ./folder), a .keras file, or a SavedModel (./folder, "
        ".tar.gz, s3://…, https://…)." + nearest(model, known_networks()),
    )


def _check_channels(config: BaseNetworkConfig, preprocessing: Preprocessing) -> None:
    """Raise BackboneError for preprocessing with a mean for each of three colors, where there are others."""
    shape = (1, 1, 1, config.channels)
    try:
        fits = tuple(preprocessing(keras.ops.zeros(shape)).shape) == shape
    except (ValueError, IndexError, tf.errors.OpError):
        fits = False
    if not fits:
        raise BackboneError(
            f"base.channels is {config.channels}, and {config.model} preprocesses pixels of 3 channels.",
            advice="Set base.preprocessing to the range that its weights expect, such as `-1..1`.",
        )


def _refuse_weights_alone(model: str) -> NoReturn:
    raise BackboneError(
        f"{model} has weights and no network.",
        advice="Set base.model to the name of their network, and base.weights to this file.",
    )


def _tap(loaded: LoadedNetwork, name: str) -> keras.Model:
    """The network up to an inner layer."""
    nodes = [node for node in nodes_in_order(loaded.network) if not node.is_input]
    calls = [node for node in nodes if node.name == name]
    if not calls:
        raise BackboneError(
            f"base.tap is {name!r} and {loaded.name} has no layer of that name.",
            advice=f"Its last layer is {nodes[-1].name}; a model nested in it is one layer."
            f"{nearest(name, [node.name for node in nodes])}",
        )
    if len(calls) > 1 or len(calls[0].outputs) != 1:
        raise BackboneError(
            f"base.tap is {name!r}, which {loaded.name} calls {len(calls)} times with {len(calls[0].outputs)} outputs; "
            "a tap is a layer that is called once and has one output.",
            advice="Tap a layer after it.",
        )
    return keras.Model(loaded.network.inputs[0], calls[0].outputs[0], name=loaded.network.name)


def _check_output(name: str, network: keras.Model) -> None:
    shape = tuple(network.outputs[0].shape)
    if len(shape) not in (2, 3, 4) or None in shape[1:] or 0 in shape[1:]:
        raise BackboneError(
            f"{name} answers shape {shape}; a base answers features (batch, height, width, channels), "
            "(batch, tokens, channels) or (batch, channels) of known size.",
            advice="Set base.tap to a layer with such an output, or use a larger base.image_size.",
        )
