"""Write the nodes that decode a stored codebook.

Every node works on the whole tensor or on a few numbers, and none depends on an input, so that a runtime
folds them all at load. The codebook is converted and scaled before it is looked up, where that is cheap; a
scale of channels comes after. What is stored for an index of

    8 or 16 bits    uint8 or uint16, at any operator set
    4 or 2 bits     uint4 from operator set 21 and uint2 from 25 on; else a stream of bits
    1 to 7 bits     a stream of bits (`graph.bitstream`)
    9 to 15 bits    its low 8 bits as uint8, the rest as a stream of bits
"""

import numpy as np
import onnx
from onnx import TensorProto

from onnxdecomp.graph.bitstream import pack, unpack, working_bytes
from onnxdecomp.graph.draft import Draft
from onnxdecomp.graph.external import element_type
from onnxdecomp.graph.stored import StoredCodebook

INDICES = "indices"
"""Label of the first tensor of a stored codebook."""

_GATHER_ELEMENTS_OPSET = 11
_GATHER_ELEMENTS_CENTROIDS = 63
_BFLOAT16_OPSET = 13
_NATIVE = {4: ("UINT4", 21, 10), 2: ("UINT2", 25, 13)}  # element type, its operator set, its IR version
_BYTE_BITS = 8


def decode(draft: Draft, stored: StoredCodebook, data_type: int, ir_version: int) -> str:
    """Write the nodes of one codebook and return the name of the tensor of `data_type` they end in."""
    shape = _working_shape(stored, draft.opset)
    indices = _indices(draft, stored, shape, ir_version)
    if stored.offsets is not None:
        indices = draft.node("Add", indices, draft.constant("offsets", stored.offsets))
    lookup = "GatherElements" if len(shape) == 1 else "Gather"
    values = draft.node(lookup, _table(draft, stored, data_type), indices)
    if stored.scale is not None and stored.scales_channels:
        if shape != stored.rows:
            shape, values = stored.rows, draft.reshape(values, stored.rows)
        values = draft.node("Mul", values, draft.constant("scale", stored.scale[:, None]))
        if data_type != TensorProto.FLOAT:
            values = draft.cast(values, data_type)
    return values if shape == stored.indices.shape else draft.reshape(values, stored.indices.shape)


def _working_shape(stored: StoredCodebook, opset: int) -> tuple[int, ...]:
    """Return the shape in which indices are looked up; one axis stands for GatherElements.

    onnxruntime's GatherElements takes half the time of its Gather, but onnx's own reference
    implementation of it takes no larger tables.
    """
    one_short_table = stored.offsets is None and stored.centroids.size <= _GATHER_ELEMENTS_CENTROIDS
    if opset >= _GATHER_ELEMENTS_OPSET and one_short_table:
        return (stored.indices.size,)
    if stored.offsets is not None or stored.scales_channels or stored.indices.ndim == 1:
        return stored.rows
    return stored.indices.shape


def bytes_per_element(stored: StoredCodebook, data_type: int, opset: int) -> int:
    """Return the most bytes that a node of the decoding makes of one element."""
    rest = stored.bits % _BYTE_BITS
    return max(4, element_type(data_type).itemsize, working_bytes(rest, opset) if rest else 0)


def _indices(draft: Draft, stored: StoredCodebook, shape: tuple[int, ...], ir_version: int) -> str:
    """Store the indices and return them as int32 of `shape`."""
    indices, bits = stored.indices.reshape(shape), stored.bits
    type_name, opset, least_ir = _NATIVE.get(bits, ("", 0, 0))
    if bits in (_BYTE_BITS, 2 * _BYTE_BITS):
        whole = indices.astype(f"uint{bits}")
        return draft.cast(draft.constant(INDICES, whole), TensorProto.INT32)
    if type_name and draft.opset >= opset and ir_version >= least_ir:
        packed = _neighbours(indices.reshape(-1), bits)
        kind = (getattr(TensorProto, type_name), shape)
        return draft.cast(draft.constant(INDICES, packed, kind), TensorProto.INT32)
    if bits < _BYTE_BITS:
        return unpack(draft, draft.constant(INDICES, pack(indices.reshape(-1), bits)), bits, shape)
    low = draft.cast(draft.constant(INDICES, (indices & 0xFF).astype(np.uint8)), TensorProto.INT32)
    high = draft.constant("high", pack(indices.reshape(-1) >> _BYTE_BITS, bits - _BYTE_BITS))
    high = unpack(draft, high, bits - _BYTE_BITS, shape)
    high = draft.node("Mul", high, draft.shared("byte", np.array(256, np.int32)))
    return draft.node("Add", low, high)


def _neighbours(indices: np.ndarray, bits: int) -> np.ndarray:
    """Return indices with those that share a byte beside each other, the first in its low bits."""
    per_byte = _BYTE_BITS // bits
    padded = np.zeros(-(-indices.size // per_byte) * per_byte, np.uint8)
    padded[: indices.size] = indices
    fields = padded.reshape(-1, per_byte) << (bits * np.arange(per_byte, dtype=np.uint8))
    packed: np.ndarray = np.bitwise_or.reduce(fields, axis=1)
    return packed


def _table(draft: Draft, stored: StoredCodebook, data_type: int) -> str:
    """Store the codebook and return it converted and, if the whole tensor has one scale, scaled."""
    centroids = stored.centroids.reshape(-1)
    stored_type = onnx.helper.np_dtype_to_tensor_dtype(centroids.dtype)
    if stored_type == TensorProto.BFLOAT16 and draft.opset < _BFLOAT16_OPSET:
        centroids, stored_type = centroids.astype(np.float32), TensorProto.FLOAT
    table = draft.constant("codebook", centroids)
    number = data_type if stored.scale is None else TensorProto.FLOAT
    if number != stored_type:
        table = draft.cast(table, number)
    if stored.scale is not None and not stored.scales_channels:
        table = draft.node("Mul", table, draft.constant("scale", stored.scale))
        if data_type != number:
            table = draft.cast(table, data_type)
    return table
