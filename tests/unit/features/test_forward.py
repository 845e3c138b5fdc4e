import logging
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.replicas import two_replicas
from tests.unit.backbone.conftest import export_module
from tests.unit.backbone.families import some_of
from transfer.backbone.applications import known_networks
from transfer.backbone.backbone import pooled
from transfer.backbone.files import RANGES
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig, ImageInput
from transfer.errors import FeaturesError
from transfer.features import engines
from transfer.features.engines import OpenVinoEngine
from transfer.features.forward import build_forward
from transfer.features.frozen import FrozenPart, frozen_part_of
from transfer.features.network import Pass

layers = keras.layers
ENGINES = ("tensorflow", "openvino")
PARITY = 2e-5
"""Largest difference from the plain Keras call, as a share of the largest magnitude in that output."""
# The smallest member of each family of networks that go by name, and a small image that it takes.
FAMILIES = {
    "convnext": ("ConvNeXtTiny", 32),
    "densenet": ("DenseNet121", 32),
    "efficientnet": ("EfficientNetB0", 32),
    "efficientnet_lite": ("EfficientNetLite0", 32),
    "efficientnet_v2": ("EfficientNetV2B0", 32),
    "inception_resnet_v2": ("InceptionResNetV2", 75),
    "inception_v3": ("InceptionV3", 75),
    "mobilenet": ("MobileNet", 32),
    "mobilenet_v2": ("MobileNetV2", 32),
    "mobilenet_v3": ("MobileNetV3Small", 32),
    "nasnet": ("NASNetMobile", 32),
    "resnet": ("ResNet50", 32),
    "resnet_v2": ("ResNet50V2", 32),
    "vgg16": ("VGG16", 32),
    "vgg19": ("VGG19", 32),
    "xception": ("Xception", 71),
}
DIFFERENT = {"efficientnet", "mobilenet_v3"}


def randomize(network):
    """BatchNorms as training leaves them: no statistic, scale or offset is 0 or 1."""
    generator = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                low, high = (0.5, 1.5) if variable.name in {"gamma", "moving_variance"} else (-0.5, 0.5)
                variable.assign(generator.uniform(low, high, variable.shape))


def backbone_of(model="MobileNetV2", size=32, **changes):
    backbone = load_backbone(BaseNetworkConfig(**{"model": model, "weights": "none", "image_size": size} | changes))
    randomize(backbone.network)
    return pooled(backbone, "average")


def cuts(backbone, *depths):
    return [frozen_part_of(backbone, depth, map_dtype="float32") for depth in depths]


def pixels(rows, size=32):
    return np.random.default_rng(1).uniform(0, 255, (rows, size, size, 3)).astype(np.float32)


def difference(output, expected):
    expected = np.asarray(expected, np.float32)
    assert output.dtype == np.float32
    assert output.shape == expected.shape
    assert np.abs(expected).max() > 0
    return np.abs(output - expected).max() / np.abs(expected).max()


def plain(frozen_parts, images):
    return [frozen_part(tf.constant(images)) for frozen_part in frozen_parts]


def assert_agrees(forward, rows, expected):
    engine = forward.engine
    ((*outputs,),) = forward.map([rows])
    assert forward.engine == engine
    assert max(map(difference, outputs, expected)) <= PARITY


@pytest.fixture(scope="module")
def small():
    return cuts(backbone_of(options={"alpha": 0.35}), 6, 2, 0)


def test_every_family_has_a_member_here():
    assert FAMILIES.keys() == {c.__module__.rpartition(".")[2] for c in known_networks().values()}


@pytest.mark.parametrize("family", some_of(FAMILIES, always="mobilenet_v2", proof=DIFFERENT))
def test_all_cuts_come_from_one_pass_as_from_the_plain_keras_calls(family):
    model, size = FAMILIES[family]
    backbone = backbone_of(model, size)
    frozen_parts = cuts(backbone, *sorted({min(3, len(backbone.blocks) - 1), 1, 0}, reverse=True))
    images = pixels(3, size)
    expected = plain(frozen_parts, images)
    for engine in ENGINES:
        assert_agrees(build_forward(frozen_parts, engine=engine), images, expected)


def cut_at(images, *outputs):
    """Frozen parts of a network of one's own, which sees pixels as they are."""
    networks = [keras.Model(images, output) for output in outputs]
    randomize(networks[-1])
    return [
        FrozenPart(base="own", image_input=ImageInput(8, 8), preprocess=RANGES["0..1"], network=network)
        for network in networks
    ]


def batch_norm(value, **options):
    return layers.BatchNormalization(**options)(value)


def shared_convolution(images):
    shared = layers.Conv2D(3, 3, padding="same")
    return batch_norm(shared(batch_norm(shared(images))))


def two_readers(images):
    seen_twice = layers.Conv2D(4, 3)(images)
    return layers.Add()([batch_norm(seen_twice), seen_twice])


class AsksForItsSize(layers.Layer):
    def call(self, value):
        tf.shape(value)
        return value * 2.0


NETWORKS = {
    "convolution with a bias": lambda images: batch_norm(layers.Conv2D(4, 3)(images)),
    "convolution without a bias": lambda images: batch_norm(layers.Conv2D(4, 3, use_bias=False)(images)),
    "convolution with an activation": lambda images: batch_norm(layers.Conv2D(4, 3, activation="relu")(images)),
    "convolution in groups": lambda images: batch_norm(layers.Conv2D(6, 3, groups=3, activation="relu")(images)),
    "convolution called twice": shared_convolution,
    "convolution read twice": two_readers,
    "depthwise": lambda images: batch_norm(layers.DepthwiseConv2D(3, depth_multiplier=2)(images)),
    "separable": lambda images: batch_norm(layers.SeparableConv2D(4, 3)(images)),
    "transposed": lambda images: batch_norm(layers.Conv2DTranspose(4, 3)(images)),
    "dense": lambda images: batch_norm(layers.Dense(5)(layers.Flatten()(images))),
    "no scale": lambda images: batch_norm(layers.Conv2D(4, 3)(images), scale=False),
    "no centre": lambda images: batch_norm(layers.Conv2D(4, 3)(images), center=False),
    "over rows": lambda images: batch_norm(layers.Conv2D(4, 3)(images), axis=1),
    "one after the other": lambda images: batch_norm(batch_norm(images)),
    "dropout": lambda images: layers.Dropout(0.5)(batch_norm(images)),
    "operations that nobody reads": lambda images: AsksForItsSize()(batch_norm(images)),
    "nested": lambda images: keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization()])(images) * 2.0,
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_batch_norm_behind_any_layer_keeps_its_meaning(network):
    entrance = keras.Input((8, 8, 3))
    frozen_parts = cut_at(entrance, NETWORKS[network](entrance))
    images = pixels(3, 8)
    for engine in ENGINES:
        assert_agrees(build_forward(frozen_parts, engine=engine), images, plain(frozen_parts, images))


def test_batch_norms_leave_the_graph_unless_somebody_wants_what_is_before_them():
    entrance = keras.Input((8, 8, 3))
    convolved = layers.Conv2D(4, 3)(entrance)
    outer = batch_norm(convolved)
    apart, whole = cut_at(entrance, convolved, outer)

    def multiplications(*frozen_parts):
        graph = Pass(frozen_parts, None).trace().graph
        return sum(operation.type == "Mul" for operation in graph.get_operations())

    assert multiplications(whole) == 0
    assert multiplications(apart, whole) == 1
    images = pixels(3, 8)
    assert_agrees(build_forward([apart, whole]), images, plain([apart, whole], images))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_later_cut_goes_on_from_the_cached_features_of_an_earlier_one(small, engine):
    images = pixels(40)
    first, *rest = small
    features = first(tf.constant(images)).numpy()
    assert_agrees(build_forward(rest, start=first, engine=engine), features, plain(rest, images))


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_of_any_size_are_answered_in_their_order(small, engine):
    images = pixels(180)
    forward = build_forward(small, engine=engine)
    sizes = [64, 1, 63, 17, 35]
    answers = list(forward.map(np.split(images, np.cumsum(sizes)[:-1])))
    assert [len(outputs[0]) for outputs in answers] == sizes
    assert forward.batch_size >= max(sizes)
    for outputs, wanted in zip(zip(*answers, strict=True), plain(small, images), strict=True):
        assert difference(np.concatenate(outputs), wanted) <= PARITY
    assert list(forward.map([])) == []


def test_auto_is_openvino_on_a_cpu_and_tensorflow_where_the_extra_is_missing(small, monkeypatch):
    assert build_forward(small).engine == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert build_forward(small).engine == "tensorflow"
    with pytest.raises(FeaturesError, match=r"not installed. .*pip install 'transfer-on-ray\[openvino\]'"):
        build_forward(small, engine="openvino")


@pytest.mark.parametrize("weight", [9.0, np.nan])
def test_outputs_that_disagree_with_keras_are_not_used(weight, caplog):
    entrance = keras.Input((8, 8, 3))
    frozen_parts = cut_at(entrance, layers.Conv2D(2, 3)(entrance))
    before = plain(frozen_parts, pixels(3, 8))
    named, auto = (build_forward(frozen_parts, engine=engine) for engine in ("openvino", "auto"))
    # Behind its back, so that Keras answers something else than what was compiled.
    frozen_parts[0].network.weights[0].assign(np.full((3, 3, 3, 2), weight))
    with pytest.raises(FeaturesError, match=r"differs from TensorFlow by (\d\.\de.\d+|nan) .*at most 1e-04"):
        list(named.map([pixels(3, 8)]))
    ((output,),) = auto.map([pixels(3, 8)])
    assert difference(output, before[0]) <= PARITY
    assert auto.engine == "tensorflow"
    assert "TensorFlow is used" in caplog.text


def test_an_operation_that_openvino_does_not_know_is_left_to_tensorflow(caplog):
    caplog.set_level(logging.INFO, "transfer")

    class Unknown(layers.Layer):
        def call(self, value):
            return value + tf.raw_ops.Betainc(a=value * 0 + 1.0, b=value * 0 + 1.0, x=value * 0)

    entrance = keras.Input((8, 8, 3))
    frozen_parts = cut_at(entrance, Unknown()(entrance))
    forward = build_forward(frozen_parts)
    assert forward.engine == "tensorflow"
    assert "OpenVINO does not run the network" in caplog.text
    assert_agrees(forward, pixels(3, 8), plain(frozen_parts, pixels(3, 8)))
    with pytest.raises(FeaturesError, match=r"does not run the network .*Betainc"):
        build_forward(frozen_parts, engine="openvino")


def test_mixed_precision_runs_as_it_is_and_only_with_tensorflow():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        frozen_parts = cuts(backbone_of(options={"alpha": 0.35}), 2, 0)
        images = pixels(3)
        expected = plain(frozen_parts, images)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    forward = build_forward(frozen_parts)
    assert forward.engine == "tensorflow"
    ((*outputs,),) = forward.map([images])
    # bfloat16 has 8 bits, and fused operations round at other places.
    assert max(map(difference, outputs, expected)) <= 3e-2
    with pytest.raises(FeaturesError, match=r"computes in bfloat16, and OpenVINO is used for float32 only"):
        build_forward(frozen_parts, engine="openvino")


@pytest.mark.parametrize(("engine", "looks_up"), [*((engine, False) for engine in ENGINES), ("tensorflow", True)])
def test_a_saved_model_base_runs_frozen(tmp_path, engine, looks_up):
    export_module(tmp_path / "module", looks_up=looks_up)
    backbone = load_backbone(BaseNetworkConfig(model=str(tmp_path / "module"), image_size=32))
    frozen_parts = cuts(backbone, 0)
    images = pixels(3)
    expected = plain(frozen_parts, images)
    forward = build_forward(frozen_parts, engine=engine)
    assert_agrees(forward, images, expected)
    for variable in backbone.network.weights:
        variable.assign(variable + 1.0)
    assert_agrees(forward, images, expected)


def test_weights_that_replicas_mirror_are_read():
    with two_replicas().scope():
        frozen_parts = cuts(backbone_of(options={"alpha": 0.35}), 0)
    assert_agrees(build_forward(frozen_parts), pixels(3), plain(frozen_parts, pixels(3)))


def test_cuts_of_different_networks_are_refused(small):
    other = cuts(backbone_of(options={"alpha": 0.35}), 2)
    with pytest.raises(ValueError, match="do not lie on one chain"):
        build_forward([other[0], small[-1]])
    with pytest.raises(ValueError, match="do not lie on one chain"):
        build_forward([small[0]], start=small[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_while_images_are_read_comes_out(small, engine):
    def batches():
        yield pixels(64)
        raise OSError("a shard is gone")

    with pytest.raises(OSError, match="a shard is gone"):
        list(build_forward(small, engine=engine).map(batches()))


def test_openvino_keeps_to_the_cpus_that_ray_gives_a_task(small, monkeypatch):
    work = Pass(small, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(engines, "FEW_CPUS", 0)
    assert OpenVinoEngine(work.trace(), work.row_shape, largest=64).calls_at_once == 1
