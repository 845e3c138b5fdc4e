import numpy as np
import pytest
import tensorflow as tf
from boto3 import client as boto_client

from tests.unit.backbone.presets import write_preset
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError
from transfer.storage import open_store

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def images():
    return tf.random.stateless_uniform((2, 32, 32, 3), seed=(1, 2))


def load(storage, **settings):
    return load_backbone(BaseNetworkConfig(image_size=32, **settings), storage=storage)


def test_weights_and_keras_files_are_read_from_a_bucket(s3_storage, tmp_path):
    options = {"alpha": 0.35}
    random = load(None, model="MobileNetV2", weights="none", options=options)
    random.network.weights[0].assign(random.network.weights[0] + 1.0)
    random.network.save_weights(tmp_path / "base.weights.h5")
    random.network.save(tmp_path / "base.keras")
    store = open_store(s3_storage)
    store.put("base.weights.h5", tmp_path / "base.weights.h5")
    store.put("base.keras", tmp_path / "base.keras")

    uri = f"{s3_storage.uri}/base.weights.h5"
    assert load(s3_storage, model="MobileNetV2", weights=uri, options=options).digest() == random.digest()
    whole = load(s3_storage, model=f"{s3_storage.uri}/base.keras", preprocessing="-1..1")
    np.testing.assert_array_equal(whole.network.weights[0].numpy(), random.network.weights[0].numpy())


def test_a_module_is_read_from_a_prefix_and_from_an_archive_in_a_bucket(
    s3_storage, module_folder, module_archive, images
):
    store = open_store(s3_storage)
    for path in module_folder.rglob("*"):
        if path.is_file():
            store.put(f"module/{path.relative_to(module_folder)}", path)
    store.put("module.tar.gz", module_archive)
    expected = load(None, model=str(module_folder)).network(images).numpy()
    for name in ("module", "module/", "module.tar.gz"):
        backbone = load(s3_storage, model=f"{s3_storage.uri}/{name}")
        assert backbone.name == "module"
        np.testing.assert_array_equal(backbone.network(images).numpy(), expected)


def test_a_preset_is_read_from_a_prefix(s3_storage, tmp_path):
    write_preset("ViT", tmp_path / "vit")
    store = open_store(s3_storage)
    for path in (tmp_path / "vit").iterdir():
        store.put(f"presets/vit/{path.name}", path)
    backbone = load(s3_storage, model=f"{s3_storage.uri}/presets/vit")
    assert backbone.name == "vit"
    assert backbone.digest() == load(None, model=str(tmp_path / "vit")).digest()


@pytest.mark.parametrize("name", ["missing.keras", "missing.tar.gz", "missing"])
def test_what_is_not_in_the_bucket_is_named(s3_storage, name):
    with pytest.raises(BackboneError, match=rf"{s3_storage.uri}/{name}"):
        load(s3_storage, model=f"{s3_storage.uri}/{name}")


def test_an_object_whose_name_leads_out_of_the_prefix_is_refused(s3_storage, tmp_path, monkeypatch):
    bucket, _, prefix = s3_storage.uri.removeprefix("s3://").partition("/")
    client = boto_client("s3", endpoint_url=s3_storage.endpoint_url)
    client.put_object(Bucket=bucket, Key=f"{prefix}/module/../../escaped", Body=b"x")
    client.close()
    scratch = tmp_path / "a" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(BackboneError, match="leads out of it"):
        load(s3_storage, model=f"{s3_storage.uri}/module")
    assert not list(tmp_path.rglob("escaped"))
