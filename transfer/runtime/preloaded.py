"""The imports of the fork server (`fork_server.py`): TensorFlow without Keras.

Forking is safe because this import starts no thread and touches no device, as a test checks. So this module runs no
operation, and limits NumPy's linear algebra library, which would start threads, to one thread.
"""

import atexit
import os
import signal
import sys

# Ctrl-C reaches the whole process group; the server ends with the process that started it.
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# TensorFlow would import Keras, which takes as long again. Checking images and running published models do not need it,
# and other code can import it later.
sys.modules["keras"] = None  # type: ignore[assignment]
import tensorflow as tf  # noqa: E402

del sys.modules["keras"]
# Hide TensorFlow's notes about deprecations of its own; its errors are still shown.
tf.get_logger().setLevel("ERROR")
# The server ends without freeing its memory, which would keep its standard error open for a second longer.
atexit.register(os._exit, 0)
