"""Where the numbers of a tensor stand when they are not in the model file, and that this place is allowed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from onnx import TensorProto

from onnxdecomp.errors import ModelError

_PACKED_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if hasattr(TensorProto, name)
}


@dataclass(frozen=True)
class ExternalRange:
    """A part of a data file.

    Args:
        path: The file.
        offset: First byte.
        size_bytes: Number of bytes the tensor needs.
    """

    path: Path
    offset: int
    size_bytes: int


def is_external(tensor: TensorProto) -> bool:
    """Tell whether the numbers of `tensor` stand in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def is_packed(tensor: TensorProto) -> bool:
    """Tell whether several elements of `tensor` share a byte."""
    return tensor.data_type in _PACKED_BITS


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes that the elements of `tensor` take as raw data."""
    bits = _PACKED_BITS.get(tensor.data_type) or 8 * element_type(tensor.data_type).itemsize
    return -(-prod(map(int, tensor.dims)) * bits // 8)


def element_type(data_type: int) -> np.dtype:
    """Return the numpy dtype of an ONNX element type; bfloat16 and smaller ones come from ml_dtypes."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def locate(tensor: TensorProto, base_dir: Path | None) -> ExternalRange:
    """Return the part of the file that holds the numbers of an external tensor.

    Raises:
        ModelError: The file is missing, too short, or stands outside `base_dir`: named by an absolute
            path, by ``..`` or reached through a symbolic link.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"the data of tensor '{tensor.name}'"
    if base_dir is None:
        raise ModelError(f"{what} is in the file '{location}': load the model from its path to reach it")
    path = base_dir / location
    if leaves_folder(location, base_dir):
        raise ModelError(
            f"{what} is said to be in '{location}', outside the model's folder: copy the file into it"
        )
    if not path.is_file():
        raise ModelError(f"{what} should be in '{path}', which does not exist: put the file beside the model")
    try:
        offset = int(entries.get("offset", "0"))
        needed = tensor_bytes(tensor)
        length = int(entries.get("length", needed))
    except (ValueError, KeyError) as error:
        raise ModelError(f"{what} in '{location}' is described by numbers that make no sense") from error
    present = path.stat().st_size
    if offset < 0 or length < needed or offset + needed > present:
        raise ModelError(
            f"{what} needs {needed} bytes from byte {offset} of '{path}' ({length} announced), which has "
            f"{present}: the file is too short, fetch it again"
        )
    return ExternalRange(path, offset, needed)


def leaves_folder(location: str, folder: Path) -> bool:
    """Tell whether a name stands for no file in `folder`, on any system or through a symbolic link."""
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    if not parts or absolute or ".." in parts or "\0" in location:
        return True
    return not (folder / location).resolve().is_relative_to(folder.resolve())


def all_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model that may hold data: initializers and attributes, of bodies as well."""
    yield from _graph_tensors(proto.graph)
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for tensor in [*sparse, *attribute.sparse_tensors]:
                yield tensor.values
                yield tensor.indices
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)
