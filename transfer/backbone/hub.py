"""TF Hub style reusable SavedModels as a trainable Keras 3 layer.

A reusable SavedModel is a folder whose loaded object can be called on images. It may list its `variables`,
`trainable_variables` and `regularization_losses`. It may be a folder, a `.tar.gz`, either of them in S3, or a handle
that tensorflow-hub resolves. Its inside is unknown, so such a base has one block: `unfreeze` is 0 or `all`.

A SavedModel is a program: it may read and write files when it runs. Use only those that you trust.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from transfer.backbone.backbone import precision
from transfer.backbone.files import RANGES, LoadedNetwork, is_s3, local_file, local_folder, saved_model_in, unpack_tar
from transfer.backbone.identity import combined_sha256
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.config.paths import path_here
from transfer.errors import BackboneError
from transfer.storage import sha256_of_file

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
# Names of the main output of a module with several named outputs; the first match wins.
MAIN_OUTPUTS = ("default", "logits")


class SavedModelLayer(keras.layers.Layer):
    """A reusable SavedModel as a layer: float32 images [batch, height, width, channels] to the module's main output.

    Its variables are those of the module, so gradients and checkpoints reach the variables that the module uses. While
    the layer is trainable, the module's regularisation losses are among its `losses`. It computes in the types of the
    module's graph under any precision policy. Build it in the scope of the distribution strategy.

    The layer's configuration identifies the module by the SHA-256 of its files. A layer is built from a folder, never
    from a configuration. Raises BackboneError if the folder is no such module or does not accept images of that size.
    """

    def __init__(self, folder: Path, *, image_shape: tuple[int, ...], shown_as: str) -> None:
        super().__init__(name="saved_model", dtype="float32")
        self._files_sha256 = _files_sha256(folder, shown_as)
        self.module = _load_module(folder, shown_as)
        self._takes_training = "training" in inspect.signature(self.module.__call__).parameters
        self.output_key = self._choose_output(image_shape, shown_as)
        """Key or index of the output that is used; None if the module has a single output tensor."""
        trained, fixed = _float_variables(self.module)
        # Keras tracks variables in attributes, and counts these as the layer's weights.
        self.module_variables = [_adopt(v, trainable=True) for v in trained] + [
            _adopt(v, trainable=False) for v in fixed
        ]
        losses = list(getattr(self.module, "regularization_losses", []))
        if losses and trained:
            # Keras calls the regulariser of a variable only while the variable is trainable, as it should be here.
            self.module_variables[0].regularizer = ModuleRegularizer(losses)
        self.built = True

    def call(self, images: Any, training: bool | None = None) -> Any:
        """The module's main output for images, float32 [batch, height, width, channels]."""
        arguments = {"training": bool(training)} if self._takes_training else {}
        output = self.module(images, **arguments)
        return output if self.output_key is None else output[self.output_key]

    def get_config(self) -> dict[str, Any]:
        """The configuration, which identifies the module by its files."""
        return {**super().get_config(), "files_sha256": self._files_sha256, "output": self.output_key}

    def _choose_output(self, image_shape: tuple[int, ...], shown_as: str) -> str | int | None:
        images = tf.TensorSpec([None, *image_shape], tf.float32)
        arguments = {"training": False} if self._takes_training else {}
        try:
            outputs = self.module.__call__.get_concrete_function(images, **arguments).structured_outputs
        except (ValueError, TypeError) as error:
            raise BackboneError(
                f"{shown_as} cannot be called on float images (batch, {', '.join(map(str, image_shape))}): {error}",
                advice="Set base.image_size and base.channels to what the module takes.",
            ) from error
        if not isinstance(outputs, dict | list | tuple):
            return None
        if not isinstance(outputs, dict):
            return 0
        if len(outputs) == 1:
            return str(next(iter(outputs)))
        if main := next((name for name in MAIN_OUTPUTS if name in outputs), None):
            return main
        raise BackboneError(
            f"{shown_as} answers several tensors, {', '.join(sorted(outputs))}, and a base has one.",
            advice=f"Export it with a single output, or name the one that counts {' or '.join(MAIN_OUTPUTS)}.",
        )


class ModuleRegularizer(keras.Regularizer):
    """The sum of a module's regularisation losses; the module applies them to its variables itself."""

    def __init__(self, losses: list[Any]) -> None:
        self._losses = losses

    def __call__(self, variable: Any) -> Any:  # noqa: ARG002 - Keras passes the variable it hangs on
        """The loss, a float32 scalar."""
        return tf.add_n([tf.cast(loss(), tf.float32) for loss in self._losses])


def is_remote_handle(model: str) -> bool:
    """Whether tensorflow-hub has to fetch the module."""
    return model.startswith(("https://", "http://", "gs://"))


def load_saved_model(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> LoadedNetwork:
    """Load the module at `config.model` as a network of one layer.

    Raises BackboneError if it cannot be fetched or unpacked, or is not a reusable SavedModel for such images.
    """
    if config.weights == "none":
        raise BackboneError(
            f"base.weights is `none`, and {config.model} is a SavedModel, which knows no other weights than its own.",
            advice="Leave base.weights out, or name a network of keras.applications or a .keras file.",
        )
    if precision() != "off":
        raise BackboneError(
            f"training.mixed_precision is {precision()}, and {config.model} is a SavedModel, whose graph says in which "
            "types it computes.",
            advice="Set training.mixed_precision to `off`, or name a network of keras.applications or a .keras file.",
        )
    scratch = Path(tempfile.mkdtemp(prefix="transfer-"))
    try:
        fetched = _fetch(config.model, scratch, storage)
        folder = saved_model_in(fetched) or fetched
        layer = SavedModelLayer(folder, image_shape=config.image_input().shape, shown_as=config.model)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    # An export copies the module's asset files, so the folder must live as long as the layer.
    weakref.finalize(layer, shutil.rmtree, scratch, ignore_errors=True)
    images = keras.Input(config.image_input().shape, name="images", dtype="float32")
    network = keras.Model(images, layer(images), name="saved_model_network")
    return LoadedNetwork(_short_name(config.model), network, RANGES["0..1"])


def _fetch(model: str, scratch: Path, storage: StorageConfig | None) -> Path:
    """Bring the module to a local folder, and return the folder."""
    if is_remote_handle(model):
        return _resolve(model)
    if model.endswith(ARCHIVE_SUFFIXES):
        archive = local_file(model, directory=scratch, storage=storage)
        unpacked = scratch / "unpacked"
        unpacked.mkdir()
        return unpack_tar(archive, directory=unpacked, shown_as=model)
    if is_s3(model):
        return local_folder(model, directory=scratch, storage=storage)
    return path_here(model)


def _resolve(handle: str) -> Path:
    with warnings.catch_warnings():
        # The import warns about pkg_resources and loads tf_keras, which warns, too. Users can do nothing about it.
        warnings.simplefilter("ignore")
        import tensorflow_hub
    try:
        return Path(tensorflow_hub.resolve(handle))
    except Exception as error:
        raise BackboneError(
            f"tensorflow-hub could not fetch {handle}: {error}",
            advice="Check the address and the network, or download the module and set base.model to its folder "
            "or .tar.gz.",
        ) from error


def _files_sha256(folder: Path, shown_as: str) -> str:
    """SHA-256 of all files of a module that TensorFlow reads: the graph, the values of its variables, and its assets.

    It includes values that the layer has no variable for: tables, integers, and variables that the module does not
    list.
    """
    graph = folder / "saved_model.pb"
    if not graph.is_file():
        raise BackboneError(
            f"{shown_as} is not a SavedModel: it has no file saved_model.pb.",
            advice="Name a .keras file, or the folder that holds saved_model.pb.",
        )
    files = [path for part in ("assets", "variables") for path in (folder / part).rglob("*") if path.is_file()]
    return combined_sha256((path.relative_to(folder).as_posix(), sha256_of_file(path)) for path in [graph, *files])


def _load_module(folder: Path, shown_as: str) -> Any:
    try:
        module = tf.saved_model.load(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise BackboneError(
            f"{shown_as} cannot be read as a SavedModel: {error}", advice="Copy or download it again."
        ) from error
    if not callable(module):
        raise BackboneError(
            f"{shown_as} is a SavedModel that only has signatures ({', '.join(sorted(module.signatures)) or 'none'}), "
            "not a reusable one whose object can be called and trained.",
            advice="Use a TF2 module, a .keras file, or export the model again with a `__call__`.",
        )
    return module


def _float_variables(module: Any) -> tuple[list[Any], list[Any]]:
    """The module's floating-point variables: the trainable ones, and the others.

    These are the variables that its function uses, whether or not the module lists them in `variables`. If the module
    has no `trainable_variables`, the attribute of each variable decides. Other variables (counters, words) are left to
    the module.
    """
    captured = [variable for function in module.__call__.concrete_functions for variable in function.variables]
    listed = getattr(module, "trainable_variables", None)
    found = {id(v): v for v in [*(listed or []), *getattr(module, "variables", []), *captured] if v.dtype.is_floating}
    may_train = {id(v) for v in (found.values() if listed is None else listed) if v.trainable}
    trained = [variable for key, variable in found.items() if key in may_train]
    return trained, [variable for key, variable in found.items() if key not in may_train]


def _adopt(variable: Any, *, trainable: bool) -> keras.Variable:
    """A Keras variable whose value is the module's own variable, not a copy."""
    name = variable.name.partition(":")[0].replace("/", "_")  # Keras allows no slash
    return keras.Variable(variable, dtype=variable.dtype.name, trainable=trainable, autocast=False, name=name)


def _short_name(model: str) -> str:
    """Name of the module in messages: `feature_vector`, or `feature_vector/5` if the handle ends in a version."""
    parts = [part for part in model.partition("?")[0].split("/") if part]
    name = "/".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
    for suffix in ARCHIVE_SUFFIXES:
        name = name.removesuffix(suffix)
    return name
