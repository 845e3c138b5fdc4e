"""A published model answers whoever loads it, whatever its base is; and one that does not is not published."""

import io
import json
import types
import warnings
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from tests.images import deep_png, encode, picture
from tests.trained import plain_logits
from tests.unit.backbone.conftest import export_module
from tests.unit.registry.c_api import answer_of_c_api
from transfer.backbone.backbone import Backbone
from transfer.backbone.files import RANGES
from transfer.backbone.load import load_backbone
from transfer.catalog.layout import VERSION_DESCRIPTION
from transfer.catalog.model import ModelVersion
from transfer.config import BaseNetworkConfig, HeadConfig, ImageInput
from transfer.dataset.batches import decoded
from transfer.dataset.decode import load_image
from transfer.errors import OutOfMemoryError, ParityError, RegistryError
from transfer.registry.export import export
from transfer.registry.export_proof import LOADERS, TOLERANCE, Loader, check_outcome, compare, outcomes_of
from transfer.registry.published_model import PublishedModel
from transfer.training import inference
from transfer.training.model import TransferModel, build_head

SIZE = 32
SQUARE = ImageInput(SIZE, SIZE)
CLASSES = ["cat", "dog", "hippopotamus"]


def convolutions(*first, shape=(SIZE, SIZE, 3)):
    """A small network with BatchNorms that change what they see, behind the layers `first`."""
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input(shape),
            *first,
            layers.Conv2D(8, 3, strides=2, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, use_bias=False),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
        ]
    )
    draw = np.random.default_rng(3)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([draw.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return keras.Model(network.inputs[0], network.outputs[0])


def model_on(network, image_input=SQUARE):
    base = Backbone(name="small", image_input=image_input, network=network, preprocess=RANGES["0..1"])
    return with_head(base)


def with_head(base):
    head = build_head(
        HeadConfig(hidden=[6]), feature_shape=tuple(base.network.output_shape[1:]), class_count=len(CLASSES), seed=5
    )
    return TransferModel(base, head, CLASSES, digest=base.digest())


class WithTable(tf.Module):
    """A module whose weights stand in a table's order, which only its initialiser fills."""

    def __init__(self):
        super().__init__()
        keys, values = tf.constant([0, 1], tf.int64), tf.constant([1, 0], tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -1)
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 8), (1, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)])
    def __call__(self, images):
        order = self.table.lookup(tf.constant([0, 1], tf.int64))
        return tf.gather(tf.reshape(tf.reduce_mean(images, (1, 2)) @ self.kernel, (-1, 2, 4)), order, axis=1)[:, 0]


def module_base(folder):
    return load_backbone(BaseNetworkConfig(model=str(folder), image_size=SIZE))


def of_hub(tmp_path):
    export_module(tmp_path / "hub")
    return with_head(module_base(tmp_path / "hub"))


def of_hub_with_a_table(tmp_path):
    tf.saved_model.save(WithTable(), str(tmp_path / "table"))
    return with_head(module_base(tmp_path / "table"))


MODELS = {
    "of Keras's layers": lambda _: model_on(convolutions()),
    "with augmentation in the base": lambda _: model_on(
        convolutions(keras.layers.RandomFlip(), keras.layers.RandomRotation(0.2), keras.layers.RandomContrast(0.3))
    ),
    "of a hub module": of_hub,
    "of a hub module with a table": of_hub_with_a_table,
}


def pictures(count=3):
    """Some PNG files, and what is in them, float32 [count, SIZE, SIZE, 3]."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files, pixels.astype(np.float32)


def expected_of(model, pixels):
    return tf.nn.softmax(plain_logits(model, tf.constant(pixels))).numpy()


@pytest.mark.parametrize(
    ("kind", "graph", "weights"),
    [
        ("of Keras's layers", "merged", "constants"),
        pytest.param("of Keras's layers", "plain", "variables", marks=pytest.mark.proof),
        ("with augmentation in the base", "merged", "variables"),
        pytest.param("of a hub module", "merged", "constants", marks=pytest.mark.proof),
        ("of a hub module with a table", "merged", "constants"),
    ],
)
def test_every_loader_gets_the_answers_of_the_trained_model(kind, graph, weights, tmp_path, monkeypatch):
    if weights == "variables":
        monkeypatch.setattr(inference, "MAX_CONSTANT_BYTES", 0)
    model = MODELS[kind](tmp_path)
    export(model, tmp_path / "exported", provenance={}, graph=graph)
    files, pixels = pictures()
    found = compare(tmp_path / "exported", files, expected_of(model, pixels), LOADERS)
    assert list(found) == [loader.name for loader in LOADERS]
    assert all(difference <= TOLERANCE for difference in found.values()), found
    variables = tf.train.list_variables(str(tmp_path / "exported/variables/variables"))
    of_the_base = [shape for _, shape in variables if len(shape) == 4 or shape == [3, 8]]
    assert bool(of_the_base) == (weights == "variables" or "hub" in kind)


def test_a_model_puts_transparent_pictures_on_the_background_that_it_was_trained_with(tmp_path):
    model = model_on(convolutions())
    export(model, tmp_path / "exported", provenance={}, background="#00ff00")
    _, pixels = pictures(2)
    alpha = np.zeros((SIZE, SIZE, 1), np.uint8)
    alpha[: SIZE // 2] = 255
    files = []
    for image in pixels.astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate([image, alpha], axis=-1)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    pixels[:, SIZE // 2 :] = (0, 255, 0)
    found = compare(tmp_path / "exported", files, expected_of(model, pixels), LOADERS[:2])
    assert all(difference <= TOLERANCE for difference in found.values()), found


def published(model, folder):
    """A version of `model` whose files are in `folder`."""
    export(model, folder, provenance={})
    version = ModelVersion.model_construct(model="pets", number=1, classes=tuple(CLASSES))
    return PublishedModel(version, folder)


def test_images_that_are_fitted_already_are_not_cropped_again(tmp_path, caplog):
    image_input = ImageInput(20, 36, fit="crop", crop_share=0.6)
    model = model_on(convolutions(shape=image_input.shape), image_input)
    asked = published(model, tmp_path / "exported")
    files = [encode(picture(90, 70, seed=seed), "PNG") for seed in range(3)]
    pixels = np.stack([decoded(file, image_input=image_input) for file in files])
    (answers,) = asked.answers(iter([(files, pixels)]), engine="tensorflow")
    np.testing.assert_allclose(answers, asked.answer(files)["probabilities"], atol=TOLERANCE)
    # TensorFlow may warn of what an earlier test of the process has saved.
    assert [record.message for record in caplog.records if record.name.startswith("transfer")] == []


def test_a_model_of_an_earlier_release_is_asked_by_its_pixels(tmp_path):
    model = model_on(convolutions())
    asked = published(model, tmp_path / "exported")
    path = tmp_path / "exported" / VERSION_DESCRIPTION
    described = json.loads(path.read_text())
    del described["image_input"]
    path.write_text(json.dumps(described | {"image_size": SIZE}))
    signatures = {name: found for name, found in asked._loaded.signatures.items() if name != "fitted"}
    asked._loaded = types.SimpleNamespace(signatures=signatures, holds_variables=asked._loaded)
    files, pixels = pictures()
    assert asked.image_input == SQUARE
    (answers,) = asked.answers(iter([(files, pixels)]), engine="tensorflow")
    np.testing.assert_allclose(answers, expected_of(model, pixels), atol=TOLERANCE)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_model_fits_files_and_pixels_of_any_size_as_it_was_trained(fit, tmp_path):
    share = {"crop_share": 0.8} if fit == "crop" else {}
    image_input = ImageInput(20, 36, fit=fit, antialias=True, **share)
    model = model_on(convolutions(shape=image_input.shape), image_input)
    export(model, tmp_path / "exported", provenance={})
    files = [encode(picture(width, height), "PNG") for width, height in ((90, 70), (40, 120), (18, 10))]
    pixels = np.stack([load_image(tf.constant(file), image_input) for file in files])
    found = compare(tmp_path / "exported", files, expected_of(model, pixels), LOADERS)
    assert all(difference <= TOLERANCE for difference in found.values()), found


@pytest.mark.parametrize(("channels", "depth"), [(1, (0, 4095)), (3, "scale")])
def test_a_model_sees_files_of_16_bits_and_gray_as_it_was_trained(channels, depth, tmp_path):
    image_input = ImageInput(SIZE, SIZE, channels=channels, depth=depth)
    model = model_on(convolutions(shape=image_input.shape), image_input)
    export(model, tmp_path / "exported", provenance={})
    draw = np.random.default_rng(4)
    files = [deep_png(draw.integers(100, 4000, (40, 50))), deep_png(draw.integers(0, 60000, (32, 32, 3)))]
    files += [encode(picture(), "JPEG"), encode(picture().convert("L"), "PNG")]
    pixels = np.stack([load_image(tf.constant(file), image_input) for file in files])
    assert pixels.min(axis=(1, 2, 3)).max() < pixels.max(axis=(1, 2, 3)).min()  # None of them is black.
    expected = expected_of(model, pixels)
    found = compare(tmp_path / "exported", files, expected, LOADERS)
    assert all(difference <= TOLERANCE for difference in found.values()), found
    described = json.loads((tmp_path / "exported" / VERSION_DESCRIPTION).read_text())
    assert ImageInput(**described["image_input"]) == image_input
    if channels == 1:
        question, answer = names_of_pixels(tmp_path / "exported")
        by_c_api = answer_of_c_api(tmp_path / "exported", question, answer, pixels, classes=len(CLASSES))
        np.testing.assert_allclose(by_c_api, expected, atol=TOLERANCE)


def test_a_published_model_says_that_it_does_not_decode_an_image(tmp_path):
    export(model_on(convolutions()), tmp_path / "exported", provenance={})
    model = PublishedModel(SimpleNamespace(model="lungs", number=3, classes=CLASSES), tmp_path / "exported")
    with pytest.raises(RegistryError, match=r"Version 3 of lungs does not decode an image: .*nearly black.*99"):
        model.answer([encode(picture(), "JPEG"), deep_png(np.full((8, 8), 99))])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with variables, exported; and the model."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "MAX_CONSTANT_BYTES", 0)
        model = model_on(convolutions())
        export(model, folder, provenance={})
    return folder, model


def names_of_pixels(folder):
    """What the signature `pixels` is asked by, and answers with, in its graph."""
    signature = tf.compat.v1.saved_model.load(
        tf.compat.v1.Session(graph=tf.Graph()), ["serve"], str(folder)
    ).signature_def["pixels"]
    return signature.inputs["images"].name, signature.outputs["probabilities"].name


def test_the_c_api_which_is_the_loader_of_tensorflow_serving_gets_them_too(exported):
    folder, model = exported
    _, pixels = pictures()
    question, answer = names_of_pixels(folder)
    found = answer_of_c_api(folder, question, answer, pixels, classes=len(CLASSES))
    np.testing.assert_allclose(found, expected_of(model, pixels), atol=TOLERANCE)


def test_litert_converts_the_pixels_signature_with_its_weights(exported):
    folder, model = exported
    with warnings.catch_warnings():
        # TensorFlow's own module of LiteRT says that it will move.
        warnings.simplefilter("ignore")
        converted = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["pixels"]).convert()
        interpreter = tf.lite.Interpreter(model_content=converted)
    _, pixels = pictures(1)
    found = interpreter.get_signature_runner("pixels")(images=pixels)["probabilities"]
    np.testing.assert_allclose(found, expected_of(model, pixels), atol=TOLERANCE)


def test_warm_up_requests_ask_both_signatures_for_what_they_can_answer(exported):
    folder, _ = exported
    loaded = tf.saved_model.load(str(folder))
    records = list(tf.data.TFRecordDataset(str(folder / "assets.extra/tf_serving_warmup_requests")))
    requests = [PredictionLog.FromString(record.numpy()).predict_log.request for record in records]
    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "pixels"]
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        answers = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert answers["probabilities"].shape == (1, len(CLASSES))


def operations_of(folder):
    graph = tf.saved_model.load(str(folder)).signatures["pixels"].graph.as_graph_def()
    return {node.op for function in graph.library.function for node in function.node_def}


def test_merged_has_no_batch_norm_left_and_plain_has_them_as_they_were_trained(exported, tmp_path):
    folder, model = exported
    export(model, tmp_path / "plain", provenance={}, graph="plain")
    of_batch_norms = {"FusedBatchNormV3", "Rsqrt"}
    assert not operations_of(folder) & of_batch_norms
    assert operations_of(tmp_path / "plain") & of_batch_norms


class Tampered(tf.Module):
    """An export with one mistake."""

    def __init__(self, model, mistake):
        super().__init__()
        self._answer = lambda images: tf.nn.softmax(plain_logits(model, images))
        self._mistake = mistake
        # As Keras would have it: the variables that the object graph holds are not those that are restored by name.
        self.network, self.head = model.backbone.network, model.head
        if mistake != "Keras's variables":
            values = [variable.value for variable in (*self.network.variables, *self.head.variables)]
            self.network, self.head = values, None

    def from_image_bytes(self, image_bytes):
        decoded = tf.map_fn(
            lambda image: tf.image.resize(tf.io.decode_png(image, channels=3), [SIZE, SIZE]),
            image_bytes,
            fn_output_signature=tf.float32,
        )
        images = tf.ensure_shape(decoded, [None, SIZE, SIZE, 3])
        return {"probabilities": self._answer(images / 2.0 if self._mistake == "range of files" else images)}

    def from_pixels(self, images):
        images = tf.ensure_shape(images, [None, SIZE, SIZE, 3])
        return {"probabilities": self._answer(images / 2.0 if self._mistake == "range of pixels" else images)}

    def save(self, folder):
        signatures = {
            "serving_default": tf.function(self.from_image_bytes).get_concrete_function(
                tf.TensorSpec([None], tf.string, name="image_bytes")
            ),
            "pixels": tf.function(self.from_pixels).get_concrete_function(
                tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
            ),
        }
        tf.saved_model.save(self, str(folder), signatures=signatures)
        (folder / VERSION_DESCRIPTION).parent.mkdir()
        (folder / VERSION_DESCRIPTION).write_text(json.dumps({"image_input": SQUARE.describe()}))


@pytest.mark.parametrize(
    ("mistake", "noticed_by"),
    [
        ("nothing", None),
        ("range of files", "tf.saved_model.load"),
        ("Keras's variables", "a session, as in TensorFlow Serving"),
        ("range of pixels", "the signature `pixels`"),
    ],
)
def test_each_way_of_asking_notices_what_the_others_do_not(mistake, noticed_by, tmp_path):
    model = model_on(convolutions())
    Tampered(model, mistake).save(tmp_path / "model")
    files, pixels = pictures()
    found = compare(tmp_path / "model", files, expected_of(model, pixels), LOADERS)
    for way, outcome in found.items():
        if way == noticed_by:
            with pytest.raises(ParityError, match="Nothing was published"):
                check_outcome(way, outcome, images=len(files), tolerance=TOLERANCE)
        elif noticed_by != "tf.saved_model.load":
            check_outcome(way, outcome, images=len(files), tolerance=TOLERANCE)


def test_whatever_a_model_does_instead_of_answering_is_an_outcome_but_not_memory_that_is_missing(tmp_path):
    def failing(error):
        def load(_folder):
            raise error

        return Loader("a loader", load)

    assert failing(AttributeError("no signature")).answers(tmp_path, []) == "AttributeError: no signature"
    out_of_memory = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8]")
    for error in (MemoryError("64 GiB"), out_of_memory):
        with pytest.raises(OutOfMemoryError, match="A model asked by a loader ran out of memory"):
            failing(error).answers(tmp_path, [])


@pytest.mark.parametrize(
    ("ended", "kind", "said"),
    [
        (BrokenProcessPool("gone"), ParityError, "ended abruptly"),
        (OutOfMemoryError("A model asked by a session ran out of memory."), OutOfMemoryError, "asked by a session"),
        (ModuleNotFoundError("no numpy"), ParityError, "cannot be used in a fresh process: .*no numpy"),
    ],
)
def test_a_proof_whose_process_ends_otherwise_is_no_proof_and_says_why(ended, kind, said):
    asked = Future()
    asked.set_exception(ended)
    with pytest.raises(kind, match=said) as raised:
        outcomes_of(asked)
    assert "Nothing was published" in raised.value.advice
