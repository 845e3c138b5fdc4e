"""Distributed transfer learning for images with TensorFlow and Keras 3 on Ray.

The public face is `transfer.pipeline` (the jobs as functions), `transfer.config` and `transfer.errors`; the command
line and `jobs/` are thin layers over them.
"""

from transfer.numerics import use_own_environment

# Before anything can import TensorFlow.
use_own_environment()
