"""Importing TensorFlow quickly and quietly: without optional imports of Keras, and without start-up messages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import ClassVar, TextIO

_LOOKED_FOR_BY_KERAS = ("matplotlib", "pandas", "sklearn")
"""Packages that Keras imports if they are installed, for features that this project does not use."""
_TALK = (
    "WARNING: All log messages before absl::InitializeLog",
    "I0000 ",
    "To enable the following instructions: ",
    # About instructions of other processors, with the same results.
    "E0000 .*oneDNN supports ",
    "libpng warning: ",
    # Of the decoder and libjpeg, about files that the ledger of rejects lists, or that are decoded all the same.
    r"[EW]0000 .*jpeg_mem\.cc",
    "Corrupt JPEG data",
    "Improper call to JPEG library",
    "Premature end of JPEG file",
    "Invalid SOS parameters for sequential JPEG",
    "JPEG datastream contains no image",
    "Unsupported marker type",
    "Warning: unknown JFIF revision number",
    "Inconsistent progression sequence",
    "Unknown Adobe color transform code",
)
"""Beginnings of useless lines that TensorFlow and its libraries print whatever their log levels are."""
_TALK_WITHOUT_GPU = "E0000 .*failed call to cuInit"
_NVIDIA_DEVICE = Path("/dev/nvidiactl")
_LONGEST_WAIT_S = 0.1


class _Process:
    is_ours = False
    filters: ClassVar[list[subprocess.Popen[bytes]]] = []


def own_process() -> None:
    """Declare that this process runs only code of this project: it is a command, or a worker."""
    _Process.is_ours = True


def start_worker() -> None:
    """Set up a process that Ray started as a worker of this project, with TensorFlow."""
    own_process()
    import_tensorflow()


def import_tensorflow() -> None:
    """Import TensorFlow and Keras, quietly; in processes of this project without the optional imports of Keras.

    Other processes get the optional imports, because their code may pass a DataFrame to Keras.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet_stderr(), without_modules(*_LOOKED_FOR_BY_KERAS if _Process.is_ours else ()):
        import keras  # noqa: F401
        import tensorflow as tf

        if _Process.is_ours:
            import pyarrow as pa

            # Arrow also looks for pandas once, with the first array that it makes from Python objects.
            pa.array([None])
        # List devices here, not with the first operation, because that prints warnings if there is no GPU.
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise TensorFlow takes the memory of the whole GPU, which other trials may share.
            tf.config.experimental.set_memory_growth(gpu, enable=True)
    # Hide TensorFlow's notes about deprecations of its own; its errors are still shown.
    tf.get_logger().setLevel("ERROR")


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Hide modules from `import` while the block runs; modules that are imported already stay."""
    hidden = _Hidden(names)
    sys.meta_path.insert(0, hidden)
    try:
        yield
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    """A finder that hides modules. Python's own way, None in `sys.modules`, makes Arrow fail."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        if fullname in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@contextmanager
def quiet_stderr() -> Iterator[TextIO]:
    """Filter start-up messages of TensorFlow out of the standard error of this process and its children.

    TensorFlow prints them from C++, some before any log level can be set. So lines pass through `grep`, a separate
    process, which also shows the last lines of a process that crashes. With TF_CPP_MIN_LOG_LEVEL set to 0 or 1 nothing
    is filtered. Yields the original standard error, a terminal if it was one.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace") as shown:
        grep = shutil.which("grep")
        if grep is None or os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2") in {"0", "1"}:
            yield shown
            return
        command = [grep, "--line-buffered", "-avE", talk_pattern()]
        # In its own session Ctrl-C does not reach `grep`; it ends when the last process closes the pipe.
        filtered = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=shown, start_new_session=True
        )
        assert filtered.stdin is not None  # noqa: S101 - it is a pipe
        os.dup2(filtered.stdin.fileno(), 2)
        filtered.stdin.close()
        try:
            yield shown
        finally:
            sys.stderr.flush()
            os.dup2(shown.fileno(), 2)
            try:
                filtered.wait(_LONGEST_WAIT_S)
            except subprocess.TimeoutExpired:
                # Other processes may keep the pipe open, for example a local Ray cluster. Python would warn of a
                # running process without an object.
                _Process.filters.append(filtered)


def talk_pattern() -> str:
    """Regular expression for the beginnings of useless lines, for grep and for Python."""
    talk = [*_TALK, *([] if _NVIDIA_DEVICE.exists() else [_TALK_WITHOUT_GPU])]
    return f"^({'|'.join(talk)})"
