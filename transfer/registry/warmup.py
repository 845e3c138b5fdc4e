"""Requests with which TensorFlow Serving warms a version up before it serves: its first real request is then fast."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

FILE_NAME = "tf_serving_warmup_requests"
"""In `assets.extra`, where TensorFlow Serving looks for it."""


def write_warmup_requests(folder: Path, *, image_size: int) -> None:
    """Write one request for each signature, with a gray image of `image_size` pixels, into `folder`."""
    gray = tf.fill([image_size, image_size, 3], tf.constant(128, tf.uint8))
    requests = {
        "serving_default": {"image_bytes": tf.make_tensor_proto([tf.io.encode_jpeg(gray).numpy()])},
        # One number and a shape, rather than as many numbers as the image has.
        "pixels": {"images": tf.make_tensor_proto(128.0, tf.float32, [1, image_size, image_size, 3])},
    }
    with tf.io.TFRecordWriter(str(folder / FILE_NAME)) as writer:
        for signature, inputs in requests.items():
            request = PredictRequest(inputs=inputs)
            request.model_spec.signature_name = signature
            writer.write(PredictionLog(predict_log=PredictLog(request=request)).SerializeToString())
