import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.backbone.families import some_of
from tests.unit.backbone.presets import FAMILIES, SIDE, write_preset
from transfer.backbone.backbone import pooled, set_precision
from transfer.backbone.encoders import as_chain
from transfer.backbone.identity import base_digests
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig, HeadConfig
from transfer.errors import BackboneError
from transfer.features.frozen import frozen_part_of
from transfer.features.network import Pass
from transfer.training.inference import trace_inference
from transfer.training.model import TransferModel, build_head

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BLOCKS = {
    "ViT": ["vit_patching_and_embedding", "block_1", "block_2"],
    "DeiT": ["deit_patching_and_embedding", "block_1", "block_2"],
    "DINOv2": ["dinov2_backbone_embeddings", "layers_0", "layers_1"],
    "DINOv3": ["dinov3_backbone_embeddings", "layers_0", "layers_1"],
    "SigLIP": ["sig_lip_vision_encoder_embedding", "block_0", "block_1", "sig_lip_vision_encoder_head"],
    "CLIP": ["clip_vision_encoder_embedding", "block_0", "block_1"],
    "Swin": ["patch_embedding", "stage_0", "stage_1"],
    "MiT": [
        "patch_and_embed_0",
        "hierarchical_encoder_0_0",
        "patch_and_embed_1",
        "hierarchical_encoder_1_0",
        "hierarchical_encoder_1_1",
    ],
    "ResNet": ["conv1_conv", "stack0_block0", "stack1_block0", "stack1_block1"],
    "EfficientNet": ["stem_conv", "block1a", "block2a", "block2b", "top_conv"],
}
# Products of a block of width 16 on n tokens: queries, keys, values and the output, scores twice, two layers of 32.
TRANSFORMER = {"ViT": 17, "DeiT": 18, "DINOv2": 19, "DINOv3": 21, "SigLIP": 16, "CLIP": 17}


def load(folder, **changes):
    return load_backbone(BaseNetworkConfig(**{"model": str(folder), "image_size": SIDE} | changes))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0.0, 255.0, (2, SIDE, SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "vit"
    return folder, write_preset("ViT", folder)


def head_on(backbone):
    """A head for two classes on the pooled base."""
    shape = pooled(backbone, "average").network.output_shape[1:]
    return build_head(HeadConfig(), feature_shape=shape, class_count=2, seed=0)


def answer(tower, inputs):
    """What keras-hub's own network answers."""
    named = tower.input
    return tower(dict.fromkeys(named, inputs) if isinstance(named, dict) else inputs, training=False).numpy()


@pytest.mark.parametrize("family", some_of(FAMILIES, always="ViT", proof=FAMILIES))
def test_a_network_of_each_family_is_cut_cached_and_exported_as_it_answers_whole(family, images, tmp_path):
    tower = write_preset(family, tmp_path / family)
    backbone = load(tmp_path / family)
    assert backbone.name == family
    assert [block.name for block in backbone.blocks] == BLOCKS[family]
    inputs = backbone.preprocess(images)
    np.testing.assert_allclose(inputs, images / 255 * [4, 2, 1] - [2, 1, 0.5], atol=1e-5)
    whole = answer(tower, inputs)
    limit = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(backbone.network(inputs, training=False), whole, rtol=0, atol=limit)
    for unfreeze in range(1, len(backbone.blocks)):
        frozen, unfrozen = backbone.cut(unfreeze)
        np.testing.assert_allclose(
            unfrozen(frozen(inputs, training=False), training=False), whole, rtol=0, atol=limit, err_msg=str(unfreeze)
        )
    if tokens := TRANSFORMER.get(family):
        flops = 4 * tokens * 16 * 16 + 2 * tokens * tokens * 16 + 2 * tokens * 16 * 32
        assert [block.flops for block in backbone.blocks[1:3]] == [flops, flops]
    assert all(block.flops for block in backbone.blocks)
    assert sum(block.parameters for block in backbone.blocks) == backbone.network.count_params()
    # What is cached of the frozen part, and what is exported.
    parts = [frozen_part_of(backbone, unfreeze, map_dtype="float32") for unfreeze in (0, 1)]
    for found, part in zip(Pass(parts, None).trace()(tf.constant(images)), parts, strict=True):
        wanted = part(images)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    model = TransferModel(pooled(backbone, "average"), head_on(backbone), ["a", "b"], digest="")
    found = trace_inference(model, graph="merged").answer(tf.constant(images))
    wanted = tf.nn.softmax(model.head(model.backbone.network(inputs, training=False)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert load(tmp_path / family).digest() == backbone.digest()


@pytest.mark.parametrize(
    ("family", "leading"),
    [
        ("ViT", 1),
        pytest.param("DeiT", 2, marks=pytest.mark.proof),
        pytest.param("DINOv3", 5, marks=pytest.mark.proof),
        pytest.param("Swin", 0, marks=pytest.mark.proof),
    ],
)
def test_tokens_are_pooled_without_those_that_stand_for_no_part_of_the_image(family, leading, images, tmp_path):
    write_preset(family, tmp_path / "preset")
    backbone = load(tmp_path / "preset")
    inputs = backbone.preprocess(images)
    tokens = backbone.network(inputs, training=False).numpy()
    mean = tokens[:, leading:].mean(axis=1)
    wanted = {"average": mean, "mean": mean, "max": tokens[:, leading:].max(axis=1), "flatten": tokens}
    if leading:
        wanted |= {"cls": tokens[:, 0], "cls+mean": np.concatenate([tokens[:, 0], mean], axis=1)}
    for pooling, features in wanted.items():
        found = pooled(backbone, pooling).network(inputs, training=False)
        np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-5, err_msg=pooling)
    if not leading:
        with pytest.raises(BackboneError, match=r"has no token of the class: each of its 16 tokens.*`mean`"):
            pooled(backbone, "cls")


def test_tokens_are_pooled_of_a_tapped_block_and_not_of_a_map(vit, tmp_path):
    folder, _ = vit
    tapped = load(folder, tap="transformer_block_1")
    assert pooled(tapped, "cls+mean").network.output_shape == (None, 32)
    write_preset("ResNet", tmp_path / "resnet")
    with pytest.raises(BackboneError, match=r"head.pooling is `mean`, and resnet answers no tokens.*`average`"):
        pooled(load(tmp_path / "resnet"), "mean")


def test_random_weights_are_the_same_each_time_and_need_no_file_of_weights(vit, tmp_path):
    folder, _ = vit
    for name in ("config.json", "image_converter.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    first, second = (load(tmp_path, weights="none") for _ in range(2))
    assert first.digest() == second.digest() != load(folder).digest()
    with pytest.raises(BackboneError, match=r"cannot be read as a preset of keras-hub: .*weights"):
        load(tmp_path)


def test_how_pixels_are_prepared_is_in_the_digest(vit, tmp_path):
    folder, _ = vit
    assert load(folder).digest() != load(folder, preprocessing="0..1").digest()
    for name in ("config.json", "model.weights.h5"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(BackboneError, match=r"has no image_converter.json.*set base.preprocessing"):
        load(tmp_path)
    assert load(tmp_path, preprocessing="0..1").digest() == load(folder, preprocessing="0..1").digest()


def test_every_file_of_a_preset_is_in_the_id_of_a_run(vit, tmp_path):
    folder, _ = vit
    before = base_digests(BaseNetworkConfig(model=str(folder)), storage=None)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copied = BaseNetworkConfig(model=str(tmp_path))
    assert base_digests(copied, storage=None) == before
    converter = tmp_path / "image_converter.json"
    converter.write_text(converter.read_text().replace("-2.0", "-2.5"))
    assert base_digests(copied, storage=None) != before


@pytest.mark.parametrize("family", some_of(["ViT", "SigLIP", "DINOv2"], always="ViT", proof=["SigLIP", "DINOv2"]))
def test_positions_are_interpolated_for_another_image_size(family, tmp_path):
    """Positions that say where they are say it of the larger image, too."""
    tower = write_preset(family, tmp_path / "preset")
    small, large = load(tmp_path / "preset"), load(tmp_path / "preset", image_size=48)
    assert [block.name for block in large.blocks] == [block.name for block in small.blocks]
    leading = {"ViT": 1, "SigLIP": 0, "DINOv2": 1}[family]
    (before,), (after,) = (
        [w.numpy() for w in each.network.weights if w.shape[-2:] == (leading + side**2, 16) and w.trainable]
        for each, side in ((small, 4), (large, 6))
    )
    before, after = before.reshape(-1, 16), after.reshape(-1, 16)
    np.testing.assert_array_equal(after[:leading], before[:leading])
    wanted = tf.image.resize(before[leading:].reshape(1, 4, 4, 16), (6, 6), "bicubic").numpy().reshape(36, 16)
    if family == "DINOv2":  # It has those of the size that it was trained on, 48, and no need to interpolate.
        positions = next(w for w in tower.weights if w.name == "position_embeddings")
        wanted = positions.numpy()[0, 1:]
    np.testing.assert_allclose(after[leading:], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "image_size", "said"),
    [
        ("ViT", 36, r"images whose sides are multiples of 8\. The nearest two are 32 and 40"),
        pytest.param(
            "Swin",
            36,
            r"images whose sides are multiples of 8\. The nearest two are 32 and 40",
            marks=pytest.mark.proof,
        ),
        pytest.param(
            "MiT",
            (32, 64),
            r"squares whose sides are multiples of 8\. The nearest two are 32 and 40",
            marks=pytest.mark.proof,
        ),
        pytest.param(
            "DINOv2",
            (32, 64),
            r"keras-hub refuses .* shape \(32, 64, 3\).*The preset was made for \(32, 32, 3\)",
            marks=pytest.mark.proof,
        ),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused_with_those_that_it_can(family, image_size, said, tmp_path):
    write_preset(family, tmp_path / "preset")
    with pytest.raises(BackboneError, match=said):
        load(tmp_path / "preset", image_size=image_size)


def test_a_preset_computes_in_the_chosen_precision(vit):
    set_precision("bfloat16")
    try:
        backbone = load(vit[0])
    finally:
        set_precision("off")
    assert backbone.network.outputs[0].dtype == "bfloat16"


def test_an_encoder_that_says_another_shape_than_it_answers_is_refused():
    class Wrong(keras.layers.Layer):
        def call(self, x):
            return x[:, 1:]

        def compute_output_shape(self, shape):
            return shape

    images = keras.Input((4, 4, 3))
    with pytest.raises(BackboneError, match=r"says that a layer answers shape \(4, 4, 3\), and it answers \(3, 4, 3\)"):
        as_chain(keras.Model(images, Wrong()(images)))


def test_an_encoder_whose_blocks_compute_something_else_is_refused():
    class ViTEncoder(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout, self.layer_norm = keras.layers.Dropout(0.1), keras.layers.LayerNormalization()
            self.encoder_layers = [keras.layers.Dense(4)]

        def call(self, x):
            return 2.0 * self.layer_norm(self.encoder_layers[0](self.dropout(x)))

    images = keras.Input((4, 4, 3))
    with pytest.raises(BackboneError, match=r"computed block by block, answers something else"):
        as_chain(keras.Model(images, ViTEncoder()(images)))


def test_an_unknown_preset_is_refused_with_the_nearest_names():
    with pytest.raises(BackboneError, match=r"hub:dinov2_smal, and keras-hub has no preset.*Nearest: dinov2_small"):
        load("hub:dinov2_smal")


def test_a_preset_that_cannot_be_downloaded_says_how_to_bring_it(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("kagglehub.model_download", refuse)
    with pytest.raises(BackboneError, match=r"could not be brought here: no route.*save_to_preset.*local or s3://"):
        load("hub:dinov2_small")


@pytest.mark.parametrize("name", ["keras_hub>BertBackbone", "Functional", "builtins>exec"])
def test_a_folder_of_another_network_is_refused(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"registered_name": name, "class_name": "x", "config": {}}))
    with pytest.raises(BackboneError, match=r"config.json of .* which is no network of keras-hub for images"):
        load(tmp_path)
