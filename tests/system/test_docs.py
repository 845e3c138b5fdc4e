"""Python in the documentation runs, page by page as in a notebook, in a folder with a small model and some photographs.

Of a few pages this project's commands run, too. The examples in docstrings run in the same folder.
"""

import shlex
from pathlib import Path

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from keras.src.legacy.saving import legacy_h5_format

from tests.digits import digits_config, write_some_digits
from tests.documentation import NOT_RUN, ON_RAY, PAGES, blocks
from tests.images import write_photographs
from tests.public_face import examples, exported, run_examples
from transfer import jobs
from transfer.cli.main import app
from transfer.config import load_config
from transfer.registry.fetch import fetch_version
from transfer.registry.versions import load_version
from transfer.storage import open_store

COMMANDS_RUN = {"own_images.md", "own_base.md", "results.md"}
"""Pages whose commands run, not only their Python."""


def is_run(block):
    """Whether the tests of this file run a block."""
    if block.language == "":
        return block.page.name in COMMANDS_RUN
    return block.language == "python" and not block.text.startswith(NOT_RUN) and ON_RAY not in block.text


RUN = {page: found for page in PAGES if (found := list(filter(is_run, blocks(page))))}
EXPORTS = {
    name: found for name, found in exported() if not any(ON_RAY in example.source for example in examples(found))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages speak of: a configuration whose run is done, a photo, predictions, and a copy of what serves."""
    folder = tmp_path_factory.mktemp("flowers")
    images = write_some_digits(folder / "images")
    # The seed that docs/python.md sets: what it trains is found.
    learning = {
        "phases": [{"unfreeze": 0, "epochs": 2, "learning_rate": 3e-3}],
        "training": {"batch_size": 16, "seed": 1},
    }
    document = digits_config(images, str(folder / "storage"), **learning).model_dump(mode="json")
    (folder / "flowers.yaml").write_text(yaml.safe_dump(document | {"name": "flowers"}))
    config = load_config(folder / "flowers.yaml")
    jobs.train(config)
    image = next(images.glob("3/*.png"))
    plt.imsave(folder / "photo.jpg", plt.imread(image), cmap="gray")
    jobs.predict(config, images=str(images / "3"), output=str(folder / "answers.parquet"))
    version = load_version(open_store(config.storage), "flowers", None)
    fetch_version(open_store(config.storage), version, folder / "models/flowers", promotion=1)
    write_photographs(folder / "flower_photos")
    return folder


@pytest.fixture(scope="module")
def keras_home(tmp_path_factory):
    """Where Keras keeps the imagenet weights that it has fetched; these let an image's colors through to the end."""
    home = tmp_path_factory.mktemp("keras")
    (home / "models").mkdir()
    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    names = {layer.name for layer in network.layers}
    for layer in network.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            layer.kernel.assign(pass_on(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Conv2D):
            branch = layer.name.replace("_project", "_add") in names - {layer.name}
            layer.kernel.assign(np.zeros(layer.kernel.shape) if branch else pass_on(layer.kernel.shape))
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"
    with h5py.File(home / "models" / name, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return home


def pass_on(shape):
    """The kernel of a convolution that only passes six channels on: three colors, and what each of them lacks."""
    height, width, inputs, outputs = shape
    kernel = np.zeros(shape)
    center = kernel[height // 2, width // 2]
    if outputs == 1:  # of a depthwise convolution
        center[:] = 1
    elif inputs == 3:
        for channel in range(outputs):
            center[channel % 3, channel] = 1 if channel % 6 < 3 else -1
    else:
        center[np.arange(outputs) % 6, np.arange(outputs)] = 1
    return kernel


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in RUN])
def test_what_a_page_says_runs(page, folder, keras_home, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BROWSER", "true")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(keras_home))
    names = {"__name__": "__main__"}
    for block in RUN[page]:
        if block.language == "python":
            code = block.text.replace("/srv/", f"{folder}/")
            exec(compile(code, block.name, "exec"), names)  # noqa: S102 - that is the test
        else:
            call_commands(block.text, capfd)


@pytest.mark.parametrize("name", EXPORTS)
def test_the_examples_of_a_docstring_run(name, folder, keras_home, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(keras_home))
    run_examples(name, EXPORTS[name])


def call_commands(text, capfd):
    """Call, in this process, those commands of a block that are this project's."""
    for line in text.splitlines():
        words, _, output = line.partition(" > ")
        program, *arguments = shlex.split(words, comments=True)
        if program == "transfer":
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                app(arguments, prog_name="transfer")
            said = capfd.readouterr()
            assert ended.value.code == 0, f"{line}: {said.err}"
            if output:
                Path(output).write_text(said.out)
