"""A preset of keras-hub, the whole way: trained, published, and asked."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.digits import digits_config, write_some_digits
from tests.unit.backbone.presets import write_preset
from transfer import jobs
from transfer.catalog import layout
from transfer.storage import open_store

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_a_vision_transformer_is_trained_published_and_answers(tmp_path):
    write_preset("ViT", tmp_path / "vit")
    config = digits_config(
        write_some_digits(tmp_path / "images"),
        str(tmp_path / "storage"),
        base={"model": str(tmp_path / "vit"), "image_size": 32},
        head={"pooling": "cls+mean"},
        features={"cache": "always"},
        phases=[
            {"unfreeze": 0, "epochs": 8, "learning_rate": 1e-2},
            {"unfreeze": 1, "epochs": 8, "learning_rate": 3e-3},
        ],
        publish={"promote": "always"},
    )
    done = jobs.train(config)
    assert done.version.provenance.parity.largest_difference <= 1e-4
    # A guess is right for .1.
    assert done.report.metrics.accuracy > 0.2
    # Both phases trained on cached features: of pooled vectors, and of tokens before the last block.
    cached = [item.name for item in open_store(config.storage).list(f"{layout.FEATURES}/")]
    assert len({name.split("/")[1] for name in cached}) == 2
    jobs.predict(config, images=str(tmp_path / "images"), output=str(tmp_path / "answers.parquet"))
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    right = np.mean([row["key"].split("/")[0] == row["class_name"] for row in rows])
    assert right > 0.2
