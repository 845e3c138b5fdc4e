"""A published model that answers images, exported without being trained."""

import tempfile
from pathlib import Path

from tests.published import add_version, provenance_of
from transfer.backbone.backbone import pooled
from transfer.backbone.load import load_backbone
from transfer.registry.export import export
from transfer.registry.promote import promote
from transfer.storage import open_store
from transfer.training.model import TransferModel, build_head

CLASSES = ["a", "b", "c"]


def publish_untrained(config):
    """Publish a model on the base of a configuration, whose head is random, and make it serve."""
    base = pooled(load_backbone(config.base), config.head.pooling)
    shape = tuple(base.network.output_shape[1:])
    head = build_head(config.head, feature_shape=shape, class_count=len(CLASSES), seed=0)
    store = open_store(config.storage)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        export(TransferModel(base, head, CLASSES, digest=base.digest()), folder, provenance={})
        version = add_version(store, config.name, folder, classes=CLASSES, provenance=provenance_of())
    promote(store, version, reason="to be asked")
