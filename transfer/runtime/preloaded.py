"""What processes that are forked from the fork server (`fork_server.py`) have imported: TensorFlow, and no Keras.

Importing it starts no thread and touches no device, which a test holds: that is what makes it safe to fork. So nothing
here may run an operation, and NumPy's library for linear algebra, which would start threads, is kept to one.
"""

import atexit
import os
import signal
import sys

# Ctrl-C reaches the whole process group; the server ends with the process that started it.
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# TensorFlow would import it, which takes as long again; to check an image or ask a published model it is not needed.
# Whoever needs it can import it later.
sys.modules["keras"] = None  # type: ignore[assignment]
import tensorflow as tf  # noqa: E402

del sys.modules["keras"]
# Notes on TensorFlow's own plans; its errors still show.
tf.get_logger().setLevel("ERROR")
# The server ends without freeing all of that: whoever waits for its standard error would wait a second longer.
atexit.register(os._exit, 0)
