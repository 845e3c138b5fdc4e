"""Tensors from a PyTorch file of the format before 1.6 (`torch.save` without zip), without PyTorch.

After a header, such a file is three pickles: sizes of types, the tensors by name as places in storages, and the order
of the storages. Then each storage follows, as its length and its numbers. The pickles may name nothing but tensors
here, so no code of a file runs.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# The first two pickles, which are the same in all such files: a magic number and a version.
_HEADER = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    """What tensors are views of."""

    key: str
    dtype: np.dtype[Any]
    length: int


class _Tensor(NamedTuple):
    """Where a tensor is in its storage; the fields are the arguments of PyTorch's `_rebuild_tensor_v2`."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: Any

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor as an array of its own; strides count numbers, and are often not those of its shape."""
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= len(numbers):
            raise pickle.UnpicklingError(f"a tensor of shape {self.shape} lies outside of its storage")
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides).copy()


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is neither a tensor nor a dictionary of tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, length, _ = pid
        return _Storage(key, dtype, length)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, in the file's order.

    Raises pickle.UnpicklingError for a file of another format, and for one that names anything but tensors.
    """
    with path.open("rb") as file:
        if file.read(len(_HEADER)) != _HEADER:
            raise pickle.UnpicklingError(f"{path} is no PyTorch file of the format before 1.6")
        _read(file)  # Sizes of types, on the machine that wrote it.
        tensors: dict[str, _Tensor] = _read(file)
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        numbers = {key: _read_storage(file, storages[key]) for key in _read(file)}
    return {name: tensor.of(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _read(file: BinaryIO) -> Any:
    return _TensorsOnly(file).load()


def _read_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
    if int.from_bytes(file.read(8), "little") != storage.length:
        raise pickle.UnpicklingError(f"the storage {storage.key} has another length than its tensors expect")
    size_bytes = storage.length * storage.dtype.itemsize
    content = file.read(size_bytes)
    if len(content) < size_bytes:
        raise pickle.UnpicklingError(f"the file ends within the storage {storage.key}")
    return np.frombuffer(content, storage.dtype)
