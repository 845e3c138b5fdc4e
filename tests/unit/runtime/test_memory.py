"""Out of memory, at each place where it happens: a sentence, and advice that fits there. Nothing here really fits."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, ingest_some_digits
from tests.published import add_version, provenance_of
from transfer.backbone.backbone import pooled
from transfer.backbone.load import load_backbone
from transfer.cli.common import errors_explained
from transfer.ensure import fit
from transfer.errors import OutOfMemoryError
from transfer.evaluation import evaluate
from transfer.features.forward import build_forward
from transfer.features.frozen import frozen_part_of
from transfer.registry.published_model import load_answers
from transfer.runtime.memory import memory_explained
from transfer.storage import open_store
from transfer.training.run import open_run

TOO_MANY = 1 << 52


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def too_much(*_, **__):
    """More than a process can address: refused before anything is reserved."""
    return np.empty(TOO_MANY, np.float32)


def too_much_of_a_graph(*_):
    return tf.numpy_function(too_much, [], tf.float32)


def as_on_a_gpu():
    # As TensorFlow says it from within a compiled step.
    message = (
        "Graph execution error:\n\nDetected at node conv2d/Conv2D defined at (most recent call last):\n<stack traces>\n"
        "OOM when allocating tensor with shape[256,112,112,96] and type float on /job:localhost/replica:0/task:0/"
        "device:GPU:0 by allocator GPU_0_bfc\n\t [[{{node conv2d/Conv2D}}]]\nHint: If you want to see a list of "
        "allocated tensors when OOM happens, add report_tensor_allocations_upon_oom to RunOptions."
    )
    raise tf.errors.ResourceExhaustedError(None, None, message)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (as_on_a_gpu, "OOM when allocating tensor with shape[256,112,112,96] and type float on"),
        (tf.function(too_much_of_a_graph), "Unable to allocate 16.0 PiB for an array with shape"),
        (too_much, "Unable to allocate 16.0 PiB for an array with shape"),
        (lambda: [None] * TOO_MANY, "Python could not allocate any more"),
    ],
    ids=["gpu", "graph", "numpy", "python"],
)
def test_what_did_not_fit_is_named_in_a_line(work, words):
    with pytest.raises(OutOfMemoryError) as raised, memory_explained("This test"):
        work()
    assert raised.value.message.startswith(f"This test ran out of memory: {words}")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        tf.errors.UnavailableError(None, None, "it is gone"),
        tf.errors.ResourceExhaustedError(None, None, "events: No space left on device"),
    ],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, memory_explained("This test"):
        raise error
    assert raised.value is error


def test_the_command_ends_with_a_code_of_its_own(capsys):
    with pytest.raises(SystemExit) as ended, errors_explained():
        too_much()
    assert ended.value.code == 15
    assert capsys.readouterr().err.startswith("Error: The command ran out of memory: Unable to allocate")


def test_training_names_the_keys_that_decide_with_their_values(digits):
    source, dataset = digits
    config = digits_config(source, f"{source.parent}/storage", training={"batch_size": TOO_MANY}, features="always")
    run = open_run(open_store(config.storage), config, dataset, run_id="large")
    with pytest.raises(OutOfMemoryError, match=r"^Run large at phase 0 ran out of memory") as raised:
        fit(run, dataset)
    for key in (
        f"training.batch_size ({TOO_MANY})",
        "training.mixed_precision (off)",
        "phases.0.unfreeze (0), phases.1.unfreeze (1)",
    ):
        assert key in raised.value.advice


def test_the_frozen_part_can_be_left_to_the_steps():
    base = digits_config(Path("images"), "storage").base
    frozen = frozen_part_of(pooled(load_backbone(base), "average"), 0, map_dtype="float32")
    forward = build_forward([frozen], engine="tensorflow")
    with pytest.raises(OutOfMemoryError, match=r"^The frozen part, on at most .* `features: never`"):
        list(forward.map(too_much() for _ in range(1)))


def test_evaluation_keeps_the_run(digits, monkeypatch):
    source, dataset = digits
    config = digits_config(source, f"{source.parent}/storage")
    run = open_run(open_store(config.storage), config, dataset)
    fit(run, dataset)
    monkeypatch.setattr("transfer.evaluation.run_answers.RunAnswers.by_network", too_much)
    with pytest.raises(OutOfMemoryError, match=r"^Evaluating on 16 images at a time .* is finished and stays"):
        evaluate.evaluate_run(run, dataset)


def test_a_published_model_can_answer_on_the_cpu(tmp_path):
    class TooLarge(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
        def answer(self, image_bytes):
            return {"probabilities": too_much_of_a_graph(image_bytes)}

    model = TooLarge()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures={"serving_default": model.answer})
    store = open_store(digits_config(tmp_path, str(tmp_path / "storage")).storage)
    version = add_version(store, "flowers", tmp_path / "model", classes=["a"], provenance=provenance_of())
    answers = load_answers(store, version, Path(tmp_path / "again"))
    with pytest.raises(OutOfMemoryError, match=r"^Version 1 of flowers, asked about .* CUDA_VISIBLE_DEVICES=-1"):
        answers([b"an image"])
