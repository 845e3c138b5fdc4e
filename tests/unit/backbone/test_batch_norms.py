"""BatchNorms that normalise by what they see."""

import keras
import numpy as np
import tensorflow as tf

from tests.trained import largest_difference
from transfer.backbone.batch_norms import batch_norms_of, estimate_statistics, statistics_of

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 255, (12, 16, 16, 3)).astype(np.float32)


def deep(*, dropout):
    """BatchNorms over both axes, inside of a nested model, and one that is called twice; `dropout`: its rate."""
    shared = layers.BatchNormalization(momentum=0.0)
    nested = keras.Sequential(
        [keras.Input((16, 16, 4)), layers.Conv2D(4, 3, strides=2), layers.BatchNormalization(momentum=0.0)]
    )
    image = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(axis=1, momentum=0.0)(layers.Conv2D(4, 3, padding="same")(image))
    x = layers.Dropout(dropout)(nested(x))
    x = shared(layers.ReLU()(shared(x)))
    return keras.Model(image, layers.GlobalAveragePooling2D()(x))


def test_estimated_statistics_are_those_of_one_batch_in_training_mode_without_dropout():
    """Keras itself stores the batch's statistics when the momentum is 0."""
    keras_own = deep(dropout=0.0)
    network = deep(dropout=0.9)
    network.set_weights(keras_own.get_weights())
    keras_own(IMAGES, training=True)
    estimate_statistics(network, tf.constant(IMAGES))
    expected, found = ([np.asarray(each) for each in statistics_of(each)] for each in (keras_own, network))
    assert len(found) == 6
    scale = max(float(np.max(np.abs(each))) for each in expected)
    assert largest_difference(found, expected) < 1e-5 * scale
    # The answer is still one of inference, with them.
    assert np.ptp(network(IMAGES[:1], training=False) - network(IMAGES, training=False)[:1]) < 1e-4


def test_the_variance_of_large_values_is_not_lost_in_rounding():
    image = keras.Input((4, 4, 3))
    network = keras.Model(image, layers.BatchNormalization()(image))
    (layer,) = batch_norms_of(network)
    layer.moving_mean.assign([1e4] * 3)
    values = (1e4 + np.random.default_rng(1).normal(size=(64, 4, 4, 3))).astype(np.float32)
    estimate_statistics(network, tf.constant(values))
    np.testing.assert_allclose(layer.moving_variance, values.astype(np.float64).var(axis=(0, 1, 2)), rtol=1e-4)


def test_a_batch_norm_on_vectors_counts_each_image_once():
    image = keras.Input((4, 4, 3))
    network = keras.Model(image, layers.BatchNormalization()(layers.GlobalAveragePooling2D()(image)))
    (layer,) = batch_norms_of(network)
    values = np.random.default_rng(1).normal(2.0, size=(64, 4, 4, 3)).astype(np.float32)
    estimate_statistics(network, tf.constant(values))
    np.testing.assert_allclose(layer.moving_mean, values.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, values.mean(axis=(1, 2)).var(axis=0), rtol=1e-4)
