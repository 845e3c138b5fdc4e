"""What everything faster must equal: the plain Keras call."""


def plain_logits(model, images):
    """Logits of a TransferModel, float32 [n, classes], for images, float32 [n, image_size, image_size, 3] in 0..255."""
    features = model.backbone.network(model.backbone.preprocess(images), training=False)
    return model.head(features, training=False)
