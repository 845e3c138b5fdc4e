"""A pretrained classifier as a model version: the network with its own top and names of classes, nothing trained.

It becomes a `TransferModel` whose head is the network's own classifier. From there on it is exported, proven, served,
compared and asked like any other version.
"""

from __future__ import annotations

import hashlib

import numpy as np
import tensorflow as tf

from transfer.backbone.backbone import network_digest, set_precision
from transfer.backbone.class_names import IMAGENET_SOURCE, names_of_outputs
from transfer.backbone.load import load_classifier, weights_origin
from transfer.catalog.model import BaseDigest, ModelVersion, Pretrained
from transfer.config import Config
from transfer.dataset.batches import decoded_batches
from transfer.registry.export_proof import HALF_PRECISION_TOLERANCE, TOLERANCE
from transfer.registry.publish import upload_proven
from transfer.registry.versions import pretrained_id, publish_once
from transfer.runtime.fork_server import start_server
from transfer.storage import Store
from transfer.training.inference import InferenceWork, rounds_coarsely, trace_inference
from transfer.training.model import TransferModel

SIDES = (64, 96, 224, 256, 301, 480)
"""Height and width, in all pairs, of the images for the proof: smaller, as large and larger than networks take."""


def publish_classifier(config: Config, store: Store, names: list[str] | None) -> ModelVersion:
    """Export `config.base` with its own classifier, prove that the export answers so, and add it to the registry.

    `names`: of its classes; None for those of ImageNet. Raises BackboneError if the network cannot be loaded or does
    not end in a classifier, ConfigError if the names do not fit, ParityError if the export answers otherwise,
    PublishConflictError if another process published the same meanwhile.
    """
    start_server()
    model = load_model(config, names)
    images = drawn_images()
    work = InferenceWork(model, trace_inference(model, graph=config.publish.graph))
    batches = decoded_batches(images, image_input=model.backbone.image_input, batch_size=len(SIDES))
    expected = np.concatenate([probabilities for batch in batches for probabilities in work.plain(batch)])
    base = BaseDigest(model=config.base.model, sha256=model.digest, weights_from=weights_origin(config.base))
    provenance = Pretrained(
        base=base,
        classes_from="publish.classes" if names else IMAGENET_SOURCE,
        config=config.model_dump(mode="json", exclude={"storage"}),
    )
    version = upload_proven(
        store,
        config,
        model,
        provenance,
        background=config.dataset.background,
        images=images,
        expected=expected,
        tolerance=HALF_PRECISION_TOLERANCE if rounds_coarsely(model) else TOLERANCE,
    )
    return publish_once(store, version, run=pretrained_id(config, names))


def load_model(config: Config, names: list[str] | None) -> TransferModel:
    """The pretrained network of a configuration with its own classifier. Raises what `publish_classifier` raises."""
    set_precision(config.training.mixed_precision)
    backbone, classifier = load_classifier(config.base, storage=config.storage, depth=config.dataset.image_depth)
    classes = names_of_outputs(names, classifier.output_shape[-1], of=config.base.model)
    digest = hashlib.sha256(f"{backbone.digest()}\n{network_digest(classifier)}".encode()).hexdigest()
    return TransferModel(backbone, classifier, classes, digest=digest)


def drawn_images() -> list[bytes]:
    """Images for the proof, where there are no held-out ones: smooth colors under noise, as JPEG and PNG in turns."""
    random = np.random.default_rng(0)
    encoders = (tf.io.encode_jpeg, tf.io.encode_png)
    images: list[bytes] = []
    for height in SIDES:
        for width in SIDES:
            smooth = tf.image.resize(random.uniform(0, 255, (4, 5, 3)), (height, width), "bicubic").numpy()
            pixels = np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
            images.append(bytes(encoders[len(images) % 2](pixels).numpy()))
    return images
