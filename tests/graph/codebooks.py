"""Codebooks of random numbers, models that hold them, and what runtimes make of these."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxdecomp.graph.codebook import FOLDING_LIMIT_BYTES, CodebookWriter, StoredCodebook
from onnxdecomp.graph.expand import Expanded, expand
from onnxdecomp.graph.io import Model, ModelWriter, load

LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def ir_of(opset: int) -> int:
    """Return the IR version that came with an operator set."""
    return max(3, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def random_codebook(
    shape: tuple[int, ...],
    bits: int = 4,
    *,
    axis: int = 0,
    group_size: int = 0,
    scale: str = "",
    dtype: type | np.dtype = np.float16,
    seed: int = 0,
) -> StoredCodebook:
    """Return indices and centroids without any order; `scale` is empty, "tensor" or "channel"."""
    rng = np.random.default_rng([seed, bits, *shape])
    n_centroids = min(2**bits, 3000)
    channels = shape[axis] if shape else 1
    n_groups = -(-channels // group_size) if group_size else 1
    scales = {
        "": None,
        "tensor": np.array(0.0123, np.float32),
        "channel": rng.uniform(0.1, 2, channels).astype(np.float32),
    }
    factor = 1000 if np.dtype(dtype) == np.int16 else 1
    return StoredCodebook(
        rng.integers(0, n_centroids, shape).astype(np.uint8 if bits <= 8 else np.uint16),
        (factor * rng.normal(size=(n_groups, n_centroids))).astype(dtype),
        bits,
        axis,
        group_size,
        scales[scale],
    )


def with_codebooks(
    source: onnx.ModelProto | Model,
    codebooks: dict[str, StoredCodebook],
    scope: str = "",
    *,
    out_path: Path | None = None,
    limit_bytes: int = FOLDING_LIMIT_BYTES,
) -> onnx.ModelProto:
    """Return a model with tensors of one graph written as codebooks, checked as onnx checks it."""
    model = source if isinstance(source, Model) else load(source)
    with ModelWriter(model, out_path) as output:
        writer = CodebookWriter(model, output.add_tensor, limit_bytes=limit_bytes)
        for name, codebook in codebooks.items():
            writer.store(name, codebook, scope)
        proto = writer.finish()
        output.commit(proto)
    if out_path is None:
        onnx.checker.check_model(proto, full_check=True)
    return proto


def expanded(proto: onnx.ModelProto) -> Expanded:
    """Return a model in memory with its codebooks expanded."""
    model = load(proto)
    with ModelWriter(model, None) as output:
        return expand(model, output.add_tensor)


def with_dense(proto: onnx.ModelProto, codebooks: dict[str, StoredCodebook]) -> onnx.ModelProto:
    """Return a model with the dense tensors of codebooks among its initializers."""
    dense = onnx.ModelProto()
    dense.CopyFrom(proto)
    for tensor in dense.graph.initializer:
        if tensor.name in codebooks:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            values = codebooks[tensor.name].dense(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return dense


def session(
    source: onnx.ModelProto | Path, level: str, optimized_path: Path | None = None
) -> ort.InferenceSession:
    """Return a session at one level of onnxruntime's graph optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized_path:
        options.optimized_model_filepath = str(optimized_path)
    content = str(source) if isinstance(source, Path) else source.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def outputs(
    source: onnx.ModelProto | Path, feeds: dict[str, NDArray[np.generic]], runtime: str
) -> list[bytes]:
    """Return the outputs of a model, bit for bit, in onnxruntime at a level or in onnx's "reference"."""
    if runtime == "reference":
        return [value.tobytes() for value in ReferenceEvaluator(source).run(None, feeds)]
    return [value.tobytes() for value in session(source, runtime).run(None, feeds)]
