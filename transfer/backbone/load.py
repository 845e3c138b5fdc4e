"""Finding, reading and checking the pretrained network that a configuration names."""

from __future__ import annotations

import keras

from transfer.backbone.applications import known_networks, load_application
from transfer.backbone.backbone import Backbone
from transfer.backbone.classifier import refuse_classifier
from transfer.backbone.graph import nodes_in_order
from transfer.backbone.hub import is_remote_handle, load_saved_model
from transfer.backbone.keras_file import load_keras_file
from transfer.backbone.preprocess import RANGES
from transfer.backbone.source import LoadedNetwork, is_s3, nearest
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.config.paths import path_here
from transfer.errors import BackboneError
from transfer.numerics import use_own_keras


def load_backbone(config: BaseNetworkConfig, *, storage: StorageConfig | None = None) -> Backbone:
    """The network that `config` names, in the current distribution strategy's scope.

    `storage` says how to reach `s3://` files (endpoint and region); credentials come from the environment. Raises
    BackboneError when the network is unknown, cannot be read, or cannot serve as a base; StorageError from S3.
    """
    use_own_keras()
    loaded = _load(config, storage)
    network = _tap(loaded, config.tap) if config.tap else loaded.network
    _check_output(loaded.name, network)
    if not (config.tap or config.accept_head or config.model in known_networks()):
        refuse_classifier(loaded.name, network)
    return Backbone(
        name=loaded.name,
        image_size=config.image_size,
        network=network,
        preprocess=loaded.preprocessing if config.preprocessing == "auto" else RANGES[config.preprocessing],
    )


def _load(config: BaseNetworkConfig, storage: StorageConfig | None) -> LoadedNetwork:
    model = config.model
    if model in known_networks():
        return load_application(config, storage=storage)
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
    if model.endswith(".keras"):
        return load_keras_file(config, storage=storage)
    if is_s3(model) or is_remote_handle(model) or path_here(model).exists():
        return load_saved_model(config, storage=storage)
    raise BackboneError(
        f"base.model is {model!r}, which is neither a network of keras.applications nor a file or folder that exists.",
        advice="Name a network, a .keras file, or a SavedModel (folder, .tar.gz, s3://…, https://…)."
        + nearest(model, known_networks()),
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
    if len(shape) not in (2, 4) or None in shape[1:] or 0 in shape[1:]:
        raise BackboneError(
            f"{name} answers shape {shape}; a base answers features (batch, height, width, channels) or "
            "(batch, channels) of known size.",
            advice="Set base.tap to a layer with such an output, or use a larger base.image_size.",
        )
