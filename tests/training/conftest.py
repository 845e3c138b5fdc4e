"""Two logical CPUs, so that two replicas run in one process. Must happen before TensorFlow's first operation."""

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
