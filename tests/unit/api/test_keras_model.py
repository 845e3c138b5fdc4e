"""A run as one `keras.Model`: what it computes, and what it is made of."""

import json

import keras
import numpy as np
import pytest

from tests.digits import digits_config
from transfer.api.keras_model import standalone_model
from transfer.backbone.load import build_backbone
from transfer.demo import BASE_PATH
from transfer.training.inference import trace_inference
from transfer.training.model import TransferModel, build_head_for


def model_of(**changes):
    """A model of three classes, the second of which is never answered."""
    config = digits_config("images", "storage", **changes)
    backbone, classes = build_backbone(config), ["a", "b", "c"]
    head = build_head_for(backbone, config, classes, untrained=[1])
    return TransferModel(backbone, head, classes, digest="")


@pytest.mark.parametrize(
    "base",
    [
        {"model": str(BASE_PATH), "image_size": 32, "preprocessing": "-1..1"},
        # BGR, centred
        pytest.param({"model": "VGG16", "weights": "none", "image_size": 32}, marks=pytest.mark.proof),
        {"model": "MobileNet", "weights": "none", "image_size": 32, "channels": 1, "options": {"alpha": 0.25}},
    ],
)
def test_it_answers_as_what_is_published_and_consists_of_layers_of_keras(base, tmp_path):
    model = model_of(base=base, head={"hidden": [8], "dropout": 0.5})
    standalone = standalone_model(model, name="digits")
    assert "transfer" not in json.dumps(standalone.get_config())
    channels = base.get("channels", 3)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, channels)).astype(np.float32)
    expected = trace_inference(model, graph="plain").answer(images).numpy()
    np.testing.assert_allclose(standalone(images).numpy(), expected, atol=1e-5)
    assert (expected[:, 1] == 0).all()
    standalone.save(tmp_path / "digits.keras")
    loaded = keras.models.load_model(tmp_path / "digits.keras")
    np.testing.assert_array_equal(loaded(images).numpy(), standalone(images).numpy())
