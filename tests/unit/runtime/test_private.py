"""Private parts of Keras and Ray are used in one place each, were read in the installed release, and are there."""

import ast
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import keras
import pytest
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

from transfer.runtime import keras_private, ray_private
from transfer.runtime.ray_private import cluster, train, tune

TRANSFER = Path(__file__).parents[3] / "transfer"
PLACES = {"keras": ["runtime/keras_private.py"], "ray": ["runtime/ray_private/*.py"]}
PRIVATE_MODULE = re.compile(r"^(keras\.src|ray\.(.+\.)?(_\w+|v2|class_cache))\b")


def imports(path):
    """Whole names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def elsewhere():
    """The project's modules that are not about what is private to Keras or Ray."""
    private = {path for patterns in PLACES.values() for pattern in patterns for path in TRANSFER.glob(pattern)}
    assert len(private) == 5
    return sorted(set(TRANSFER.rglob("*.py")) - private)


def test_private_modules_are_imported_in_one_place():
    assert PRIVATE_MODULE.match("ray.train.v2._internal.execution.callback.ControllerCallback")
    found = [f"{path}: {name}" for path in elsewhere() for name in imports(path) if PRIVATE_MODULE.match(name)]
    assert not found


def test_private_attributes_of_other_objects_are_read_in_one_place():
    # Ruff refuses them without this comment. Python itself has no public way to run what `atexit` has.
    found = [path for path in elsewhere() if "noqa: SLF001" in path.read_text(encoding="utf-8")]
    assert found == [TRANSFER / "cli/main.py"]


@pytest.mark.parametrize(("library", "read"), [("keras", keras_private.VERSION), ("ray", ray_private.VERSION)])
def test_what_is_private_was_read_in_the_installed_release(library, read):
    assert version(library).startswith(f"{read}.")


def test_keras_tells_which_layer_was_called_and_what_is_in_it():
    image = keras.Input((4,))
    inside = keras.Sequential([keras.layers.Dense(2), keras.layers.BatchNormalization()])
    network = keras.Model(image, inside(image))
    call = keras_private.call_of(network.outputs[0])
    assert call.operation is inside
    assert call.arguments.keras_tensors[0] is image
    inside.trainable = False
    variables = [len(keras_private.own_trainable_variables(layer)) for layer in inside.layers]
    assert variables == [2, 2]
    assert set(inside.layers) < set(keras_private.inner_layers(network))
    directly = keras_private.direct_layers(network)
    assert inside in directly
    assert not set(inside.layers) & set(directly)


def test_layers_get_names_as_in_a_new_process_and_later_ones_no_name_twice():
    first = keras.layers.Dense(1).name
    with keras_private.fresh_layer_names():
        assert keras.layers.Dense(1).name == "dense"
    assert keras.layers.Dense(1).name not in {first, "dense"}


def test_layers_can_be_named_after_a_network_that_could_not_be_built():
    with pytest.raises(ValueError, match="no weights"), keras_private.fresh_layer_names():
        raise ValueError("no weights")
    assert keras.optimizers.Adam().name
    assert keras.layers.GaussianNoise(0.1).name.startswith("gaussian_noise")


def test_keras_names_the_file_that_it_could_not_download(tmp_path):
    with pytest.raises(Exception, match="URL fetch failure") as failed:
        keras.utils.get_file("weights.h5", f"file://{tmp_path}/none", cache_dir=tmp_path, cache_subdir="models")
    assert keras_private.download_target(failed.value) == str(tmp_path / "models/weights.h5")
    assert keras_private.weights_folder().name == "models"
    assert {"b0", "v2-b0"} & keras_private.WEIGHTS_HASHES.keys() == {"b0"}


def test_ray_shows_what_workers_print_by_handlers_that_take_lines():
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    before, shown = dispatcher.handlers, []
    try:
        dispatcher.handlers = [("a", shown.append)]
        cluster.filter_printed_lines(lambda line: "talk" not in line)
        dispatcher.emit({"lines": ["a figure", "talk"], "pid": 1})
    finally:
        dispatcher.handlers = before
    assert shown == [{"lines": ["a figure"], "pid": 1}]


def test_ray_train_calls_what_the_watchdog_and_the_trainer_override():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    assert parameters(train.WorkerGroupCallback.after_worker_group_start) == ["self", "worker_group"]
    assert parameters(train.WorkerGroupCallback.after_worker_group_poll_status) == ["self", "worker_group_status"]
    updated = parameters(train.ControllerCallback.after_controller_state_update)
    assert updated == ["self", "previous_state", "current_state"]
    ((own, theirs),) = [
        (vars(train.InterruptibleTrainer)[name], vars(parent)[name])
        for parent in train.InterruptibleTrainer.__mro__[1:]
        for name in ["_register_sigint_handler"]
        if name in vars(parent)
    ]
    assert parameters(own) == parameters(theirs)


def test_ray_tune_has_the_draws_that_are_replaced():
    for name in ("_checkpoint_or_exploit", "_get_new_config"):
        own, theirs = (inspect.signature(vars(of)[name]) for of in (tune.ChosenPopulation, PopulationBasedTraining))
        assert list(own.parameters) == list(theirs.parameters)
    source = inspect.getsource(OptunaSearch)
    assert "self._ot_study" in source
    assert "self._ot_trials" in source
    assert any(name.startswith("AWS_") for name in tune.ENV_VARS_TO_PROPAGATE)
