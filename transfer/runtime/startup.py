"""How a process of this project gets TensorFlow: without what Keras imports beside it, and without start-up talk."""

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
"""Keras imports them where they are installed, for features that are not used here: two fifths of its start."""
_TALK = (
    "WARNING: All log messages before absl::InitializeLog",
    "I0000 ",
    "To enable the following instructions: ",
    # What it does on a processor of another kind, with the same result.
    "E0000 .*oneDNN supports ",
    "libpng warning: ",
    # The decoder and libjpeg, of files that the ledger of rejects names, or that decode all the same.
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
"""How lines begin that TensorFlow and the libraries in it print past their own log levels, and that nobody can use."""
_TALK_WITHOUT_GPU = "E0000 .*failed call to cuInit"
_NVIDIA_DEVICE = Path("/dev/nvidiactl")
_LONGEST_WAIT_S = 0.1


class _Process:
    is_ours = False
    filters: ClassVar[list[subprocess.Popen[bytes]]] = []


def own_process() -> None:
    """Say that this process runs nobody's code but this project's: a command, or a worker of its own."""
    _Process.is_ours = True


def start_worker() -> None:
    """Make this process, which Ray started, a worker of our own, with TensorFlow."""
    own_process()
    import_tensorflow()


def import_tensorflow() -> None:
    """Import TensorFlow and Keras, quietly; in a process of our own without what Keras would import beside them.

    In other processes Keras finds all that it looks for: somebody may give it a DataFrame.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet_stderr(), without_modules(*_LOOKED_FOR_BY_KERAS if _Process.is_ours else ()):
        import keras  # noqa: F401
        import tensorflow as tf

        if _Process.is_ours:
            import pyarrow as pa

            # Arrow, too, looks for pandas once: with the first array that it makes from Python's objects.
            pa.array([None])
        # Here and not with the first operation, whenever that is: it complains where there is no GPU.
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise TensorFlow takes the whole GPU, also from a trial that shares it.
            tf.config.experimental.set_memory_growth(gpu, enable=True)
    # Notes on TensorFlow's own plans; its errors still show.
    tf.get_logger().setLevel("ERROR")


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Have `import` not find some modules while the block runs; those that are imported already stay."""
    hidden = _Hidden(names)
    sys.meta_path.insert(0, hidden)
    try:
        yield
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    """Finds no module by these names. None in `sys.modules`, Python's own way, makes Arrow stumble."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        if fullname in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@contextmanager
def quiet_stderr() -> Iterator[TextIO]:
    """Leave the start-up talk of TensorFlow out of the standard error of this process and of those that it starts.

    TensorFlow prints it from C++, some of it before any log level can be set, so lines go through `grep`: a process of
    its own, which also shows the last words of one that crashes. Whoever sets TF_CPP_MIN_LOG_LEVEL to 0 or 1 gets
    everything. Yields standard error as it was before, a terminal if it was one.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace") as shown:
        grep = shutil.which("grep")
        if grep is None or os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2") in {"0", "1"}:
            yield shown
            return
        command = [grep, "--line-buffered", "-avE", talk_pattern()]
        # In a session of its own Ctrl-C does not reach it: it ends when nobody can print any more.
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
                # Others may hold the pipe for longer, such as a local Ray cluster. Python complains of a process that
                # runs and that it has no object of any more.
                _Process.filters.append(filtered)


def talk_pattern() -> str:
    """How a line begins that nobody can use: a regular expression, for grep and for Python."""
    talk = [*_TALK, *([] if _NVIDIA_DEVICE.exists() else [_TALK_WITHOUT_GPU])]
    return f"^({'|'.join(talk)})"
