"""Open a model in onnxruntime and run it, with errors a user can read."""

import ctypes
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from onnxdecomp.errors import ModelError

Array = NDArray[np.generic]
Feeds = Mapping[str, Array]
Model = onnx.ModelProto | Path

LOG_FATAL = 4
"""onnxruntime says nothing below this severity; what matters comes as an exception."""

ORT_ERRORS: tuple[type[Exception], ...] = (
    *(c for c in vars(ort_state).values() if isinstance(c, type) and issubclass(c, Exception)),
    RuntimeError,
    ValueError,
)
"""Everything onnxruntime raises; its own exceptions share no base class."""

MAX_PROTO_BYTES = 2**31 - 1
"""A protobuf message cannot be larger; such a model must come as a path with external data."""

MAX_MESSAGE = 300
"""Characters of an onnxruntime message that are shown."""

OPAQUE_TYPES = {"tensor(bfloat16)": "BFLOAT16", "tensor(float8e4m3fn)": "FLOAT8E4M3FN",
                "tensor(float8e5m2)": "FLOAT8E5M2"}  # fmt: skip
"""Element types numpy has no name for: these cross the border as raw bytes."""


def open_session(
    model: Model,
    *,
    optimize: bool = True,
    threads: int = 1,
    folder: Path | None = None,
    profile_prefix: Path | None = None,
    optimized_path: Path | None = None,
    spinning: bool = False,
    prepacking: bool = True,
) -> ort.InferenceSession:
    """Return an onnxruntime session on the CPU.

    Args:
        model: The model, or its path. From a path onnxruntime reads by itself and maps external data.
        optimize: False switches all of onnxruntime's graph optimizations off.
        threads: Threads inside an operator. Operators run one after another.
        folder: Where the external data of a model in memory lies.
        profile_prefix: Start of the file name onnxruntime writes its profile to; None for no profile.
        optimized_path: File that onnxruntime writes the model to as its optimizations left it, with its
            weights beside it; None for no such file.
        spinning: Let idle threads burn time in wait for the next operator. It gains a little in a program
            that runs one model, but several sessions in one process then steal each other's processors.
        prepacking: Let operators bring constant weights into their own order when the model is loaded. The
            profiler does not see a weight that was given away so.

    Raises:
        ModelError: The file does not exist, or onnxruntime cannot load the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if not prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
        entry = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{entry}_file_name", f"{optimized_path.name}.data")
        options.add_session_config_entry(f"{entry}_min_size_in_bytes", "1024")
    source = _source(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ModelError(f"onnxruntime cannot load {_title(model)}: {first_sentence(error)}") from error


def run(session: ort.InferenceSession, feeds: Feeds) -> dict[str, Array]:
    """Run `session` once and return its outputs by name.

    bfloat16 and float8 go in and come out as arrays of the `ml_dtypes` kinds onnx uses. Outputs that are
    sequences come as lists, missing optional ones as None.

    Raises:
        ModelError: onnxruntime cannot run the model on these inputs.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        if any(value.type in OPAQUE_TYPES for value in (*session.get_inputs(), *session.get_outputs())):
            return _run_opaque(session, feeds, names)
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except ORT_ERRORS as error:
        shapes = ", ".join(f"{name} {'x'.join(map(str, np.shape(x)))}" for name, x in feeds.items())
        raise ModelError(
            f"onnxruntime cannot run the model on inputs {shapes}: {first_sentence(error)}"
        ) from error


def read_proto(model: Model) -> onnx.ModelProto:
    """Return the model; from a path it is read without its external data.

    Raises:
        ModelError: The file cannot be read as a model.
    """
    if not isinstance(model, Path):
        return model
    try:
        return onnx.load(model, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ModelError(f"{model} cannot be read as an ONNX model: {first_sentence(error)}") from error


def first_sentence(error: Exception) -> str:
    """Return what onnxruntime says on one line, without its codes and source paths."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"\S*onnxruntime_src\S*:\d+ (?:.*?\) )?", "", text)
    text = text.strip().rstrip(".")
    return (text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + " ...") + "."


def _source(model: Model) -> str | bytes:
    if isinstance(model, Path):
        if not model.is_file():
            raise ModelError(f"{model} is not a file.")
        return str(model)
    try:  # to ask for the size first would take as long again
        serialized: bytes = model.SerializeToString()
        if len(serialized) <= MAX_PROTO_BYTES:
            return serialized
    except (EncodeError, ValueError):
        pass
    raise ModelError(
        f"The model takes {model.ByteSize()} bytes in memory and onnxruntime accepts at most "
        f"{MAX_PROTO_BYTES}: save it with external data and pass the path."
    )


def _title(model: Model) -> str:
    return str(model) if isinstance(model, Path) else f"the model '{model.graph.name}'"


def _run_opaque(session: ort.InferenceSession, feeds: Feeds, names: list[str]) -> dict[str, Array]:
    types = {value.name: value.type for value in session.get_inputs()}
    values = {}
    for name, array in feeds.items():
        array = np.ascontiguousarray(array)
        if types.get(name) in OPAQUE_TYPES:
            element = getattr(onnx.TensorProto, OPAQUE_TYPES[types[name]])
            raw = array.view(np.dtype(f"u{array.itemsize}"))
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, element)
        else:
            values[name] = ort.OrtValue.ortvalue_from_numpy(array)
    outputs = session.run_with_ort_values(names, values)
    return {name: _to_numpy(value) for name, value in zip(names, outputs, strict=True)}


def _to_numpy(value: ort.OrtValue) -> Array:
    kind = OPAQUE_TYPES.get(value.data_type())
    if kind is None:
        return np.asarray(value.numpy())
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind))
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)
