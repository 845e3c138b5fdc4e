import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.backbone.families import some_of
from transfer.backbone.backbone import Backbone
from transfer.backbone.files import RANGES
from transfer.backbone.load import describe, load_backbone
from transfer.config import BaseNetworkConfig, ImageInput
from transfer.errors import BackboneError


def load(model, image_size=32, **settings):
    return load_backbone(BaseNetworkConfig(model=model, weights="none", image_size=image_size, **settings))


def backbone_of(network, image_size=16):
    return Backbone(
        name="own", image_input=ImageInput(image_size, image_size), network=network, preprocess=RANGES["0..255"]
    )


@pytest.fixture(scope="module")
def mobilenet():
    return load("MobileNetV2", options={"alpha": 0.35})


# Family, image size, number of blocks, and the last ones from the input to the output.
FAMILIES = {
    "MobileNet": (32, 14, ["conv_11", "conv_12", "conv_13"]),
    "MobileNetV2": (32, 19, ["block_15", "block_16", "Conv_1"]),
    "MobileNetV3Small": (32, 13, ["expanded_conv_9", "expanded_conv_10", "conv_1"]),
    "ResNet50": (32, 17, ["conv5_block1", "conv5_block2", "conv5_block3"]),
    "ResNet50V2": (32, 17, ["conv5_block1", "conv5_block2", "conv5_block3"]),
    "VGG16": (32, 5, ["block1", "block2", "block3", "block4", "block5"]),
    "InceptionV3": (75, 16, [f"mixed{number}" for number in range(11)]),
    "DenseNet121": (32, 62, ["conv5_block15", "conv5_block16"]),
    "EfficientNetB0": (32, 18, ["block6d", "block7a", "top_conv"]),
    "ConvNeXtTiny": (32, 22, ["downsampling_block_2", "stage_3_block_0", "stage_3_block_1", "stage_3_block_2"]),
    "Xception": (71, 14, ["block12", "block13", "block14"]),
}


@pytest.mark.parametrize(
    "model", some_of(FAMILIES, always="MobileNetV2", proof={"ResNet50", "InceptionV3", "ConvNeXtTiny"})
)
def test_a_family_is_cut_at_its_known_blocks_and_the_halves_compute_what_the_whole_does(model):
    image_size, count, last = FAMILIES[model]
    backbone = load(model, image_size)
    names = [block.name for block in backbone.blocks]
    assert len(names) == count
    assert names[-len(last) :] == last
    assert len(set(names)) == count

    layers = [layer for block in backbone.blocks for layer in block.layers]
    assert sorted(layers) == sorted(operation.name for operation in backbone.network.operations[1:])
    assert sum(block.parameters for block in backbone.blocks) == backbone.network.count_params()

    images = tf.random.stateless_uniform((2, image_size, image_size, 3), seed=(1, 2), maxval=255.0)
    inputs = backbone.preprocess(images)
    whole = backbone.network(inputs, training=False).numpy()
    for unfreeze in (2, count - 1):
        frozen, unfrozen = backbone.cut(unfreeze)
        assert frozen.output_shape == backbone.blocks[-unfreeze - 1].output_shape
        np.testing.assert_array_equal(unfrozen(frozen(inputs, training=False), training=False).numpy(), whole)


def test_the_halves_share_their_weights_with_the_network(mobilenet):
    frozen, unfrozen = mobilenet.cut(3)
    shared = {id(weight) for weight in frozen.weights} | {id(weight) for weight in unfrozen.weights}
    assert shared == {id(weight) for weight in mobilenet.network.weights}
    assert not {id(weight) for weight in frozen.weights} & {id(weight) for weight in unfrozen.weights}


def test_unfreezing_nothing_or_everything_gives_one_part(mobilenet):
    assert mobilenet.cut(0) == (mobilenet.network, None)
    assert mobilenet.cut("all") == (None, mobilenet.network)
    assert mobilenet.cut(len(mobilenet.blocks)) == (None, mobilenet.network)
    assert mobilenet.cut("Conv1") == (None, mobilenet.network)


@pytest.mark.parametrize(
    ("name", "first_unfrozen"),
    [
        ("block_13_expand", "block_13_expand"),
        ("block_13_depthwise", "block_13_depthwise"),  # inside a block, but in a plain chain
        ("block_15_depthwise", "block_15_expand"),  # beside a shortcut: the cut moves to the block's beginning
        ("block_15", "block_15_expand"),  # a block's name
        ("block_13", "block_13_expand"),
        ("Conv_1_bn", "Conv_1_bn"),
    ],
)
def test_a_name_cuts_at_the_nearest_valid_place_at_or_before_it(mobilenet, name, first_unfrozen):
    frozen, unfrozen = mobilenet.cut(name)
    assert unfrozen.layers[1].name == first_unfrozen
    assert name not in {layer.name for layer in frozen.layers}


def test_too_many_blocks_are_refused_with_the_number_there_is(mobilenet):
    with pytest.raises(BackboneError, match=r"unfreeze is 20 and MobileNetV2 has 19 blocks.*0 to 19"):
        mobilenet.cut(20)


def test_unfreezing_layers_without_weights_is_refused(mobilenet):
    with pytest.raises(BackboneError, match=r"unfreeze is 'out_relu', and MobileNetV2 has no weights there"):
        mobilenet.cut("out_relu")


def test_an_unknown_layer_is_refused_with_the_nearest_names(mobilenet):
    with pytest.raises(BackboneError, match=r"'block_13_expnd'.*Nearest: block_13_expand"):
        mobilenet.cut("block_13_expnd")


@pytest.mark.proof
def test_a_network_without_places_to_cut_says_how_many_blocks_it_has():
    backbone = load("NASNetMobile")
    assert [block.name for block in backbone.blocks] == ["stem_conv1", "normal_concat_12"]
    with pytest.raises(BackboneError, match=r"unfreeze is 5 and NASNetMobile has 2 blocks.*single tensor"):
        backbone.cut(5)


def test_a_tap_ends_the_network_at_an_inner_layer_and_its_block():
    backbone = load("MobileNetV2", options={"alpha": 0.35}, tap="block_13_expand_relu")
    assert backbone.blocks[-1].name == "block_13"
    assert backbone.blocks[-1].layers == ("block_13_expand", "block_13_expand_BN", "block_13_expand_relu")
    assert backbone.network.output_shape == (None, 2, 2, 192)


def test_an_unknown_tap_is_refused_with_the_nearest_names():
    with pytest.raises(BackboneError, match=r"base.tap is 'mixed77'.*Nearest: mixed7"):
        load("InceptionV3", 75, tap="mixed77")


def test_without_names_each_layer_with_weights_starts_a_block_and_parallel_paths_are_one():
    images = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    x = keras.layers.Conv2D(4, 3, name="first")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    shortcut = x
    x = keras.layers.Conv2D(4, 3, padding="same", name="inner")(x)
    x = keras.layers.Add(name="sum")([x, shortcut])
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Conv2D(4, 3, name="last")(x)
    backbone = backbone_of(keras.Model(images, x))
    assert [(block.name, block.layers) for block in backbone.blocks] == [
        ("first", ("scale", "first", "norm", "relu")),
        ("sum", ("inner", "sum", "pool")),
        ("last", ("last",)),
    ]


def test_no_cut_is_made_between_two_calls_of_the_same_layer():
    images = keras.Input((16, 16, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    x = keras.layers.ReLU(name="between")(shared(images))
    x = keras.layers.Conv2D(4, 3, name="after")(shared(x))
    backbone = backbone_of(keras.Model(images, x))
    assert [block.layers for block in backbone.blocks] == [("shared", "between"), ("after",)]


def test_a_nested_model_is_one_layer_and_one_block():
    inner = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(8, 3)], name="inner"
    )
    images = keras.Input((16, 16, 3))
    backbone = backbone_of(keras.Model(images, keras.layers.Conv2D(2, 1, name="after")(inner(images))))
    assert [block.name for block in backbone.blocks] == ["inner", "after"]
    assert backbone.blocks[0].flops == 14 * 14 * 4 * 27 + 12 * 12 * 8 * 36


def test_flops_are_the_multiply_adds_of_each_kind_of_layer():
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same", name="conv")(images)  # 8×8×6
    x = keras.layers.Conv2D(6, 3, groups=2, padding="same", name="grouped")(x)
    x = keras.layers.DepthwiseConv2D(5, padding="same", depth_multiplier=2, name="depthwise")(x)  # 8×8×12
    x = keras.layers.SeparableConv2D(4, 3, strides=2, padding="same", name="separable")(x)  # 4×4×4
    x = keras.layers.Conv2DTranspose(5, 3, strides=2, padding="same", name="transpose")(x)  # 8×8×5
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(7, name="dense")(x)
    backbone = backbone_of(keras.Model(images, x))
    assert {block.name: block.flops for block in backbone.blocks} == {
        "conv": 64 * 6 * 9 * 3,
        "grouped": 64 * 6 * 9 * 3,
        "depthwise": 64 * 12 * 25,
        "separable": 16 * (12 * 9 + 12 * 4),
        "transpose": 16 * 4 * 9 * 5,
        "dense": 5 * 7,
    }


def test_mobilenet_v2_costs_the_three_hundred_million_multiply_adds_of_its_paper():
    total = sum(block.flops for block in load("MobileNetV2", 224).blocks)
    assert total == pytest.approx(300e6, rel=0.01)


def test_the_description_counts_depth_from_the_output_and_adds_up(mobilenet):
    rows = describe(mobilenet)
    assert [row["depth"] for row in rows] == list(range(19, 0, -1))
    assert [row["block"] for row in rows] == [block.name for block in mobilenet.blocks]
    assert sum(row["flops_share"] for row in rows) == pytest.approx(1.0, abs=1e-9)
    assert rows[0]["trained_flops_share"] == 1.0
    assert rows[-1]["trained_flops_share"] == pytest.approx(rows[-1]["flops_share"], abs=1e-9)
    assert rows[-1]["output_shape"] == [1, 1, 1280]
    assert rows[-1]["feature_bytes"] == 4 * 1280
    frozen, _ = mobilenet.cut(rows[-2]["depth"])
    assert rows[-2]["cached_bytes"] == 4 * np.prod(frozen.output_shape[1:])
    assert rows[0]["cached_bytes"] == 0
