"""A SavedModel loaded by TensorFlow's C API, `TF_LoadSessionFromSavedModel`: the loader of TensorFlow Serving."""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np

FLOAT = 1


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def answer_of_c_api(folder, question, answer, pixels, *, classes):
    """What the graph's tensor `answer` is for `pixels` in the tensor `question`, both by name ("pixels_images:0")."""
    library = _library()
    status, graph = ctypes.c_void_p(library.TF_NewStatus()), ctypes.c_void_p(library.TF_NewGraph())

    def check():
        assert library.TF_GetCode(status) == 0, library.TF_Message(status).decode()

    def output(name):
        operation, _, index = name.partition(":")
        return _Output(library.TF_GraphOperationByName(graph, operation.encode()), int(index))

    options, tags = ctypes.c_void_p(library.TF_NewSessionOptions()), (ctypes.c_char_p * 1)(b"serve")
    session = ctypes.c_void_p(
        library.TF_LoadSessionFromSavedModel(options, None, str(folder).encode(), tags, 1, graph, None, status)
    )
    check()
    shape = (ctypes.c_int64 * pixels.ndim)(*pixels.shape)
    tensor = library.TF_AllocateTensor(FLOAT, shape, pixels.ndim, ctypes.c_size_t(pixels.nbytes))
    ctypes.memmove(library.TF_TensorData(ctypes.c_void_p(tensor)), pixels.ctypes.data, pixels.nbytes)
    inputs, outputs = (_Output * 1)(output(question)), (_Output * 1)(output(answer))
    given, found = (ctypes.c_void_p * 1)(tensor), (ctypes.c_void_p * 1)()
    library.TF_SessionRun(session, None, inputs, given, 1, outputs, found, 1, None, 0, None, status)
    check()
    data = ctypes.cast(library.TF_TensorData(ctypes.c_void_p(found[0])), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(data, (len(pixels), classes)).copy()


def _library():
    folder = Path(importlib.util.find_spec("tensorflow").origin).parent
    library = ctypes.CDLL(str(next(folder.glob("libtensorflow_cc.so.?"))))
    for name in ("NewStatus", "NewGraph", "NewSessionOptions", "LoadSessionFromSavedModel", "GraphOperationByName"):
        getattr(library, f"TF_{name}").restype = ctypes.c_void_p
    library.TF_AllocateTensor.restype = library.TF_TensorData.restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    return library
