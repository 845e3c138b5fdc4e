"""Nights on real digits, in a folder that grows."""

import numpy as np
import pytest
import yaml

from tests.digits import digits_config
from transfer import jobs
from transfer.cli.main import app
from transfer.dataset.manifest import load_dataset
from transfer.registry.versions import current_promotion
from transfer.storage import open_store

# Time is nothing that these tests may depend on.
GATE = {"max_latency_ratio": None}


class Fortnight:
    """A source that grows, and a night on it whenever one is asked for."""

    def __init__(self, folder):
        from PIL import Image
        from sklearn.datasets import load_digits

        self.source, self.storage = folder / "images", str(folder / "storage")
        digits = load_digits()
        self.images = [
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
            for pixels in digits.images
        ]
        self.of_label = [np.flatnonzero(digits.target == label) for label in range(10)]
        self.store = open_store(self.config().storage)

    def config(self, *, learning_rate=1e-2, epochs=3, **nightly):
        return digits_config(
            self.source,
            self.storage,
            dataset={"source": str(self.source), "validation": 0.1, "test": 0.3, "max_reject_share": 0.5},
            phases=[{"unfreeze": 0, "epochs": epochs, "learning_rate": learning_rate}],
            training={"batch_size": 32},
            nightly={**nightly, "gate": {**GATE, **nightly.get("gate", {})}},
        )

    def add(self, labels, places, *, shown_as=lambda label: label):
        """Bring images `places` of each label into the source, in the folder of the class that they are shown as."""
        for label in labels:
            folder = self.source / str(shown_as(label))
            folder.mkdir(parents=True, exist_ok=True)
            for index in self.of_label[label][places]:
                self.images[index].save(folder / f"{index:04d}.png")

    def remove(self, labels, places, *, shown_as=lambda label: label):
        for label in labels:
            for index in self.of_label[label][places]:
                (self.source / str(shown_as(label)) / f"{index:04d}.png").unlink()

    def night(self, **options):
        summary, page = jobs.nightly(self.config(**options))
        assert self.store.exists(page.removeprefix(f"{self.store.uri}/"))
        return summary

    def command(self, *arguments, **options):
        """Exit code of `transfer nightly`."""
        with pytest.raises(SystemExit) as ended:
            app(["nightly", str(self.file(self.config(**options))), *arguments], prog_name="transfer")
        return ended.value.code

    def file(self, config):
        file = self.source.parent / "config.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return file

    @property
    def serving(self):
        return current_promotion(self.store, "digits").version

    @property
    def dataset(self):
        return load_dataset(self.store, "digits")
