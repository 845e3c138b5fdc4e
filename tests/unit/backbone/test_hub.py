import io
import shutil
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config
from tests.replicas import two_replicas
from transfer.backbone.backbone import set_precision
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError
from transfer.jobs import check


def load(model, **changes):
    return load_backbone(BaseNetworkConfig(**{"model": str(model), "image_size": 32} | changes))


@pytest.fixture
def images():
    return tf.random.stateless_uniform((4, 32, 32, 3), seed=(1, 2), maxval=255.0)


def expected_features(folder, images):
    return tf.saved_model.load(str(folder))(images / 255.0, training=False).numpy()


def sgd_step(backbone, images):
    """One step as training does it; gives the optimiser and the loss without penalties."""
    network = backbone.network
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(network.trainable_variables)
    values = [variable.value for variable in network.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(backbone.preprocess(images), training=False))
    optimizer.apply_gradients(zip(tape.gradient(loss, values), network.trainable_variables, strict=True))


def test_a_module_answers_what_it_answers_outside(module_folder, images):
    backbone = load(module_folder)
    assert backbone.name == "feature_vector"
    np.testing.assert_array_equal(
        backbone.network(backbone.preprocess(images), training=False).numpy(), expected_features(module_folder, images)
    )


def test_a_module_in_training_mode_runs_its_training_function(module_folder, images):
    backbone = load(module_folder)
    outside = tf.saved_model.load(str(module_folder))(images / 255.0, training=True)
    np.testing.assert_array_equal(backbone.network(images / 255.0, training=True).numpy(), outside.numpy())


def test_a_module_is_one_block_of_its_parameters(module_folder):
    backbone = load(module_folder)
    (block,) = backbone.blocks
    assert block.parameters == 3 * 8 + 8 + 8
    assert block.output_shape == (None, 8)
    assert len(backbone.network.trainable_variables) == 2
    assert len(backbone.network.non_trainable_variables) == 1
    assert backbone.cut("all") == (None, backbone.network)
    assert backbone.cut(0) == (backbone.network, None)
    with pytest.raises(BackboneError, match=r"has 1 blocks"):
        backbone.cut(2)


def test_a_gradient_step_changes_what_the_module_computes(module_folder, images):
    backbone = load(module_folder)
    before = backbone.network(backbone.preprocess(images)).numpy()
    digest = backbone.digest()
    assert load(module_folder).digest() == digest
    sgd_step(backbone, images)
    layer = backbone.network.layers[1]
    loaded = layer.module
    for ours, inside in zip(layer.module_variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), inside.numpy())
    after = loaded(images / 255.0, training=False).numpy()
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_array_equal(backbone.network(backbone.preprocess(images)).numpy(), after)
    assert backbone.digest() != digest


def test_the_weights_of_a_module_that_does_not_list_them_are_found_and_told_apart(export, images, tmp_path):
    export(tmp_path / "first", seed=1, looks_up=True, lists_variables=False)
    export(tmp_path / "second", seed=2, looks_up=True, lists_variables=False)
    # As from another process: the same graph with other weights.
    shutil.copy(tmp_path / "first" / "saved_model.pb", tmp_path / "second")
    first, second = load(tmp_path / "first"), load(tmp_path / "second")
    assert first.digest() != second.digest()
    network = first.network
    assert sorted(tuple(v.shape) for v in network.trainable_variables) == [(3, 8), (8,)]
    assert [v.name for v in network.non_trainable_variables] == ["block_moving_mean"]
    digest = first.digest()
    sgd_step(first, images)
    assert first.digest() != digest == load(tmp_path / "first").digest()


def test_every_file_of_a_module_is_in_its_digest(module_folder, tmp_path):
    folder = shutil.copytree(module_folder, tmp_path / "module")
    digest = load(folder).digest()
    assert digest == load(module_folder).digest()
    (folder / "assets" / "words.txt").write_text("one")
    with_asset = load(folder).digest()
    (folder / "assets" / "words.txt").rename(folder / "assets" / "other.txt")
    assert len({digest, with_asset, load(folder).digest()}) == 3


@pytest.fixture(scope="module")
def constant_folder(tmp_path_factory):
    """A module that has nothing to train."""
    module = tf.train.Checkpoint(scale=tf.Variable(2.0, trainable=False))
    module.__call__ = tf.function(
        lambda images: module.scale * images[:, 0, 0], input_signature=[tf.TensorSpec((None, 32, 32, 3))]
    )
    folder = tmp_path_factory.mktemp("hub") / "constant"
    tf.saved_model.save(module, str(folder))
    return folder


def test_a_module_without_weights_to_train_can_be_frozen_only(constant_folder):
    backbone = load(constant_folder)
    assert backbone.cut(0) == (backbone.network, None)
    with pytest.raises(BackboneError, match=r"unfreeze is 'all', and constant has no weights there.*`unfreeze: 0`"):
        backbone.cut("all")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": [{"unfreeze": 0}, {"unfreeze": 1}]}, "unfreeze is 1, and constant has no weights"),
        ({"training": {"mixed_precision": "bfloat16"}}, "mixed_precision is bfloat16"),
    ],
    ids=["nothing to train", "half precision"],
)
def test_what_a_module_cannot_do_is_refused_before_the_job(constant_folder, tmp_path, changes, said):
    base = {"model": str(constant_folder), "image_size": 32}
    config = digits_config(Path("digits"), str(tmp_path), base=base, **{"phases": [{"unfreeze": 0}], **changes})
    try:
        with pytest.raises(BackboneError, match=said):
            check(config)
    finally:
        set_precision("off")


def test_the_modules_regularisation_counts_while_it_is_trained(module_folder):
    network = load(module_folder).network
    kernel = network.trainable_variables[0].numpy()
    (loss,) = network.losses
    np.testing.assert_allclose(loss.numpy(), 0.5 * (kernel**2).sum(), rtol=1e-6)
    with tf.GradientTape() as tape:
        (loss,) = network.losses
    np.testing.assert_allclose(tape.gradient(loss, network.trainable_variables[0].value).numpy(), kernel, rtol=1e-6)
    network.trainable = False
    assert network.losses == []
    assert network.trainable_variables == []


def test_two_replicas_train_a_module_as_one_does(module_folder, images):
    alone = load(module_folder)
    sgd_step(alone, images)

    strategy = two_replicas()
    with strategy.scope():
        backbone = load(module_folder)
        variables = backbone.network.trainable_variables
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(variables)

    @tf.function
    def step(images):
        def on_replica(images):
            values = [variable.value for variable in variables]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(backbone.network(backbone.preprocess(images), training=False))
            optimizer.apply_gradients(zip(tape.gradient(loss, values), variables, strict=True))
            return loss + tf.add_n(backbone.network.losses)

        return strategy.run(on_replica, args=(images,))

    halves = tf.split(images, 2)
    step(strategy.experimental_distribute_values_from_function(lambda c: halves[c.replica_id_in_sync_group]))
    for found, wanted in zip(variables, alone.network.trainable_variables, strict=True):
        assert len(found.value.values) == 2
        for replica in found.value.values:
            np.testing.assert_allclose(replica.numpy(), wanted.numpy(), rtol=0, atol=1e-6)


def test_a_module_inside_an_export_answers_the_same_after_reloading(module_folder, images, tmp_path):
    backbone = load(module_folder)
    sgd_step(backbone, images)
    serving = tf.Module()
    serving.network = backbone.network
    serving.answer = tf.function(
        lambda pixels: backbone.network(backbone.preprocess(pixels), training=False),
        input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)],
    )
    expected = serving.answer(images).numpy()
    tf.saved_model.save(serving, str(tmp_path / "export"))
    reloaded = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_array_equal(reloaded.answer(images).numpy(), expected)
    assert np.abs(expected - expected_features(module_folder, images)).max() > 0.01


def test_a_module_is_refused_in_half_precision(module_folder):
    set_precision("float16")
    try:
        with pytest.raises(BackboneError, match=r"mixed_precision is float16.*SavedModel.*to `off`"):
            load(module_folder)
    finally:
        set_precision("off")


def test_a_classification_module_that_is_accepted_gives_its_logits(export, images, tmp_path):
    export(tmp_path / "module", answer="logits first")
    network = load(tmp_path / "module", accept_head=True).network
    outside = tf.saved_model.load(str(tmp_path / "module"))(images, training=False)["logits"]
    np.testing.assert_array_equal(network(images).numpy(), outside.numpy())


def test_a_module_of_several_outputs_without_a_main_one_is_refused(export, tmp_path):
    export(tmp_path / "module", answer="boxes")
    with pytest.raises(BackboneError, match=r"answers several tensors, boxes, scores"):
        load(tmp_path / "module")


def test_a_module_for_another_image_size_is_refused(module_folder):
    with pytest.raises(BackboneError, match=r"cannot be called on float images \(batch, 48, 48, 3\)"):
        load(module_folder, image_size=48)


def test_a_saved_model_that_only_has_signatures_is_refused(tmp_path):
    module = tf.Module()
    module.serve = tf.function(lambda x: x, input_signature=[tf.TensorSpec((None, 32, 32, 3))])
    tf.saved_model.save(module, str(tmp_path / "served"), signatures={"serving_default": module.serve})
    with pytest.raises(BackboneError, match=r"only has signatures \(serving_default\)"):
        load(tmp_path / "served")


def test_a_folder_without_a_saved_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"has no file saved_model.pb"):
        load(tmp_path)


def test_a_module_comes_out_of_an_archive_and_its_scratch_folder_goes_with_the_layer(
    module_archive, module_folder, images, tmp_path, monkeypatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    backbone = load(module_archive)
    assert backbone.name == "feature_vector"
    np.testing.assert_array_equal(backbone.network(images / 255.0).numpy(), expected_features(module_folder, images))
    assert list(scratch.glob("transfer-*"))
    with pytest.raises(BackboneError):
        load(module_archive, image_size=48)
    assert len(list(scratch.glob("transfer-*"))) == 1  # the refused one left nothing


def test_a_remote_handle_is_resolved_by_tensorflow_hub(
    module_archive, module_folder, images, tmp_path, monkeypatch, serve
):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    backbone = load(f"{serve(module_archive.parent)}/feature_vector.tar.gz")
    assert backbone.name == "feature_vector"
    np.testing.assert_array_equal(backbone.network(images / 255.0).numpy(), expected_features(module_folder, images))


def test_a_remote_handle_that_answers_nothing_is_an_error_with_advice(tmp_path, monkeypatch, serve):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(BackboneError, match=r"could not fetch http://127.0.0.1.*404.*download the module"):
        load(f"{serve(tmp_path)}/missing.tar.gz")


def archive_of(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)
    return path


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (("../escaped", b"x"), "outside of the folder"),
        (("inner/../../escaped", b"x"), "outside of the folder"),
        (("/tmp/escaped", b"x"), "outside of the folder"),  # noqa: S108 - never written
        (("link", (tarfile.SYMTYPE, "/etc/passwd")), "`link` is a link, a device or sparse"),
        (("hard", (tarfile.LNKTYPE, "saved_model.pb")), "`hard` is a link, a device or sparse"),
        (("fifo", (tarfile.FIFOTYPE, "")), "`fifo` is a link, a device or sparse"),
    ],
    ids=["parent", "hidden parent", "absolute", "symbolic link", "hard link", "device"],
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path, member, said):
    archive = archive_of(tmp_path / "evil.tar.gz", ("saved_model.pb", b"x"), member)
    with pytest.raises(BackboneError, match=said):
        load(archive)
    assert not (tmp_path / "escaped").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.backbone.files.MAX_MODULE_BYTES", 1000)
    archive = archive_of(tmp_path / "bomb.tar.gz", ("a", b"0" * 600), ("b", b"0" * 600))
    with pytest.raises(BackboneError, match=r"more than a module may have, 1,000 bytes"):
        load(archive)


def test_an_archive_with_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.backbone.files.MAX_MODULE_FILES", 2)
    with pytest.raises(BackboneError, match=r"more than 2 members"):
        load(archive_of(tmp_path / "many.tar.gz", ("a", b""), ("b", b""), ("c", b"")))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_off_archive_is_refused(module_archive, tmp_path, share):
    whole = module_archive.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BackboneError, match=r"cut.tar.gz is refused: it is damaged"):
        load(tmp_path / "cut.tar.gz")


def test_a_module_cannot_start_with_random_weights(module_folder):
    with pytest.raises(BackboneError, match="knows no other weights than its own"):
        load(module_folder, weights="none")
