"""Element types: what ONNX stores and what torch computes in."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from onnxdecomp.errors import ModelError

DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT16: torch.int32,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT64: torch.int64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
} | {
    getattr(TensorProto, name): dtype
    for name, dtype in (
        ("INT4", torch.int8), ("UINT4", torch.uint8), ("INT2", torch.int8), ("UINT2", torch.uint8),
    )
    if hasattr(TensorProto, name)
}  # fmt: skip
"""What each ONNX element type is computed in; 16-bit floats in float32, small or unsigned integers in an
integer type that torch computes with and that holds their numbers."""

TRAINABLE = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Element types of initializers that gradients reach."""

_WIDER = {
    "float16": np.float32,
    "bfloat16": np.float32,
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
    "int4": np.int8,
    "uint4": np.uint8,
    "int2": np.int8,
    "uint2": np.uint8,
}


def torch_dtype(data_type: int) -> Any:
    """Return the torch dtype that stands for an ONNX element type.

    Raises:
        ModelError: There is none.
    """
    if data_type not in DTYPES:
        name = TensorProto.DataType.Name(data_type)
        raise ModelError(
            f"element type {name} cannot be computed in here: fine-tune the model before its use"
        )
    return DTYPES[data_type]


def to_torch(array: NDArray[np.generic]) -> Tensor:
    """Return a copy of `array` as a tensor of a type that torch computes in.

    Raises:
        ModelError: There is none for its elements.
    """
    name = array.dtype.name
    if name.startswith(("float8", "float4")):
        wide = np.array(array, np.float32)
    elif name in _WIDER:
        wide = np.array(array).astype(_WIDER[name])
    elif array.dtype.kind in "fiubc":
        wide = np.array(array)
    else:
        raise ModelError(
            f"elements of type {name} cannot be computed in here: fine-tune the model before its use"
        )
    return torch.from_numpy(wide.reshape(array.shape))


def as_computed(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 when it is a 16-bit float, otherwise itself."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
