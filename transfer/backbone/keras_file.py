"""A network from a `.keras` file, or from a whole model in HDF5 that Keras 3 still reads."""

from __future__ import annotations

import importlib
import inspect
import logging
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

from transfer.backbone.backbone import in_chosen_precision, precision
from transfer.backbone.blocks import called_on
from transfer.backbone.files import (
    HDF5_SUFFIXES,
    MAX_MODULE_BYTES,
    RANGES,
    LoadedNetwork,
    all_weights_or_none,
    fixed_seed,
    local_file,
)
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.errors import BackboneError

# Keras reads the description of the layers into memory. For thousands of layers it has a few megabytes.
MAX_DESCRIPTION_BYTES = 64 * 1024**2

logger = logging.getLogger(__name__)


def load_keras_file(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> LoadedNetwork:
    """Load the functional or sequential model in the file, from one image to one output.

    With `weights: none` it has random weights, the same in every process. If its height and width are open, they become
    `config.image_size`. It computes in the precision of `set_precision`, whatever it was saved with. Code in the file
    (Lambda layers) is never run, and classes of other packages only come from `base.custom_objects`. Raises
    BackboneError if the file cannot be used.
    """
    with keras.saving.custom_object_scope(_custom_objects(config.custom_objects)):
        model = _in_chosen_precision(config, _as_functional(config, _read(config, storage)))
        if config.weights == "none":
            with fixed_seed():
                model = keras.models.clone_model(model)
        network = _with_fixed_size(config, model)
    return LoadedNetwork(Path(config.model).stem, network, RANGES["0..255"])


def _custom_objects(module: str | None) -> dict[str, Any]:
    """The layers in a module of the user's, by the names of their classes. Importing it runs its code."""
    if module is None:
        return {}
    logger.info("Importing %s, which base.custom_objects names.", module)
    try:
        imported = importlib.import_module(module)
    # It may fail in any way.
    except Exception as error:
        raise BackboneError(
            f"base.custom_objects is {module!r}, and importing it failed: {error}",
            advice="Install it on each machine, or put the folder above it on PYTHONPATH there.",
        ) from error
    found = {name: value for name, value in vars(imported).items() if inspect.isclass(value)}
    return {name: value for name, value in found.items() if issubclass(value, keras.layers.Layer)}


def _read(config: BaseNetworkConfig, storage: StorageConfig | None) -> keras.Model:
    with tempfile.TemporaryDirectory(prefix="transfer-") as directory:
        path = local_file(config.model, directory=Path(directory), storage=storage)
        is_hdf5 = config.model.endswith(HDF5_SUFFIXES)
        try:
            _check_hdf5(path) if is_hdf5 else _check_sizes(path)
            with all_weights_or_none():
                return keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            advice = (
                "Load it with the Keras that wrote it, build the same network with Keras 3, copy the weights with "
                "`set_weights`, and save it with `model.save('name.keras')`. If the file has weights only, set "
                "base.model to the name of their network, and base.weights to the file."
                if is_hdf5
                else "Only files made of Keras's own layers are read, and of those in the module that "
                "base.custom_objects names: code inside a file (a Lambda layer) is never run. Save it again with "
                "`model.save('name.keras')`, without other layers."
            )
            kind = "a model in HDF5" if is_hdf5 else "a .keras file"
            raise BackboneError(f"{config.model} cannot be read as {kind}: {error}", advice=advice) from error


def _check_hdf5(path: Path) -> None:
    """Raise ValueError if the file leads to other files, or unpacks to more than any network has."""
    size_bytes = 0

    def mistake(name: str, link: Any) -> str | None:
        nonlocal size_bytes
        found = file[name] if isinstance(link, h5py.HardLink) else None
        if found is None or (isinstance(found, h5py.Dataset) and found.external):
            return f"{name} in it lies elsewhere"
        size_bytes += found.nbytes if isinstance(found, h5py.Dataset) else 0
        return f"it unpacks to more than {MAX_MODULE_BYTES:,} bytes" if size_bytes > MAX_MODULE_BYTES else None

    with h5py.File(path) as file:
        # It ends at the first that is not None.
        if found := file.visititems_links(mistake):
            raise ValueError(found)


def _check_sizes(path: Path) -> None:
    """Raise ValueError if the archive unpacks to more than any network has. Its headers limit what it unpacks to."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            limit = MAX_DESCRIPTION_BYTES if member.filename.endswith(".json") else MAX_MODULE_BYTES
            if member.file_size > limit:
                raise ValueError(f"{member.filename} in it unpacks to more than {limit:,} bytes")


def _as_functional(config: BaseNetworkConfig, model: keras.Model) -> keras.Model:
    """The model as a functional one with one input and one output tensor; dictionaries of one tensor are unwrapped."""
    inputs = getattr(model, "inputs", None)
    outputs = getattr(model, "outputs", None)
    if not inputs or not outputs or len(inputs) != 1 or len(outputs) != 1:
        found = f"{len(inputs)} inputs and {len(outputs)} outputs" if inputs and outputs else "no graph of layers"
        raise BackboneError(
            f"{config.model} has {found}; a base has one image as its input and one output.",
            advice="Save a functional or (built) sequential model.",
        )
    shape, dtype = tuple(inputs[0].shape), inputs[0].dtype
    if len(shape) != 4 or shape[3] not in (1, 3) or not keras.backend.is_float_dtype(dtype):
        raise BackboneError(
            f"{config.model} takes {dtype} of shape {shape}; a base takes float images (batch, height, width, 3), RGB, "
            "or (batch, height, width, 1).",
            advice="Save the model with such an input.",
        )
    if shape[3] != config.channels:
        raise BackboneError(
            f"{config.model} takes images of {shape[3]} channel{'s' * (shape[3] > 1)} and base.channels is "
            f"{config.channels}.",
            advice=f"Set base.channels to {shape[3]}.",
        )
    return keras.Model(inputs[0], outputs[0], name=model.name)


def _in_chosen_precision(config: BaseNetworkConfig, model: keras.Model) -> keras.Model:
    try:
        return in_chosen_precision(model)
    except ValueError as error:
        raise BackboneError(
            f"{config.model} cannot compute as training.mixed_precision says, which is {precision()}: {error}.",
            advice="Save the network before it is quantised.",
        ) from error


def _with_fixed_size(config: BaseNetworkConfig, model: keras.Model) -> keras.Model:
    *size, _ = config.image_input().shape
    found = list(model.input.shape[1:3])
    if found == size:
        return model
    if any(side not in (None, wanted) for side, wanted in zip(found, size, strict=True)):
        raise BackboneError(
            f"{config.model} takes images of {found[0]}×{found[1]} pixels and base.image_size is {config.image_size}.",
            advice=f"Set base.image_size to {found[0] if found[0] == found[1] else found}.",
        )
    return called_on(model, (None, *config.image_input().shape))
