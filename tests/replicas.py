"""Two replicas in one process, on two logical CPUs. Import it before TensorFlow's first operation."""

import functools

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@functools.cache
def two_replicas():
    """One strategy for all tests: a second one would number its collectives like the first, and they would mix."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
