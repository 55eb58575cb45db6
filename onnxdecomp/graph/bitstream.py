"""Small numbers in a stream of bits, without gaps, and the nodes that read it.

A few neighbouring fields make up a word of whole bytes, so that no field is cut by the end of a word::

    width   1  2  3  4  5  6  7
    fields  8  4  8  2  8  4  8   in a word
    bytes   1  1  3  1  5  3  7   of a word

The stream is stored as byte planes ``(bytes, words)``, and field j of all words stands for a run of elements
that follow each other: the nodes work along long rows and their result ``(fields, words)`` is in order.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxdecomp.graph.draft import Draft

_BITSHIFT_OPSET = 11


class Word(NamedTuple):
    """A word: so many fields of the stream in so many bytes."""

    n_fields: int
    n_bytes: int


WORDS = {width: Word(*fields) for width, fields in enumerate(
    ((8, 1), (4, 1), (8, 3), (2, 1), (8, 5), (4, 3), (8, 7)), start=1)}  # fmt: skip
"""The words of each width."""

_UNSIGNED = {1: TensorProto.UINT8, 3: TensorProto.UINT32, 5: TensorProto.UINT64, 7: TensorProto.UINT64}
_UNSIGNED_BITS = {TensorProto.UINT8: 8, TensorProto.UINT32: 32, TensorProto.UINT64: 64}


def pack(values: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """Return numbers below ``2**width`` as the byte planes of a stream.

    Args:
        values: ``(n,)``.
        width: Bits of a number, 1 to 7.

    Returns:
        ``(bytes, words)``, where the number of words is n over the fields of a word, rounded up; what is
        missing in the last fields is zero.
    """
    n_fields, n_bytes = WORDS[width]
    n_words = -(-values.size // n_fields)
    words = np.zeros(n_words, np.uint64)
    for number in range(n_fields):
        run = values[number * n_words : (number + 1) * n_words].astype(np.uint64)
        words[: run.size] |= run << np.uint64(width * number)
    planes = [(words >> np.uint64(8 * plane)).astype(np.uint8) for plane in range(n_bytes)]
    return np.stack(planes)


def fields(planes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return the fields ``(fields, words)`` of a stream, those that `pack` added included.

    Args:
        planes: ``(bytes, words)``.
        width: Bits of a field, 1 to 7.
    """
    n_fields, n_bytes = WORDS[width]
    words = np.zeros(planes.shape[1], np.uint64)
    for plane in range(n_bytes):
        words |= planes[plane].astype(np.uint64) << np.uint64(8 * plane)
    low = np.uint64(2**width - 1)
    return np.stack(
        [(words >> np.uint64(width * number) & low).astype(np.uint8) for number in range(n_fields)]
    )


def working_bytes(width: int, opset: int) -> int:
    """Return the largest number of bytes per element that a node of the decoding makes."""
    if opset < _BITSHIFT_OPSET:
        return 8
    n_bytes = WORDS[width].n_bytes
    return max(4, _UNSIGNED_BITS[_UNSIGNED[n_bytes]] // 8)


def unpack(draft: Draft, planes: str, width: int, shape: tuple[int, ...]) -> str:
    """Write the nodes that read a stream and return their result, int32 of `shape`.

    From operator set 11 on fields are cut out by BitShift, before by division.
    """
    n_fields, n_bytes = WORDS[width]
    n_values = prod(shape)
    cut = _by_shifts if draft.opset >= _BITSHIFT_OPSET else _by_division
    fields = cut(draft, planes, width)
    narrow = draft.opset >= _BITSHIFT_OPSET and n_bytes == 1
    if not narrow:
        fields = draft.cast(fields, TensorProto.INT32)
    if n_values % n_fields:
        fields = draft.head(draft.flatten(fields), n_values)
    if len(shape) != 1 or not n_values % n_fields:
        fields = draft.reshape(fields, shape)
    # bytes are moved before they grow
    return draft.cast(fields, TensorProto.INT32) if narrow else fields


def _by_shifts(draft: Draft, planes: str, width: int) -> str:
    """Push what stands above a field out of the word, then what stands below: ``(fields, words)``."""
    n_fields, n_bytes = WORDS[width]
    unsigned = _UNSIGNED[n_bytes]
    bits = _UNSIGNED_BITS[unsigned]
    dtype = np.dtype(f"uint{bits}")
    word = planes
    if n_bytes > 1:
        places = draft.shared(f"places{n_bytes}", 256 ** np.arange(n_bytes, dtype=dtype)[None])
        word = draft.node("MatMul", places, draft.cast(planes, unsigned))  # (1, words)
    above = bits - width * (1 + np.arange(n_fields)[:, None])  # (fields, 1)
    left = draft.shared(f"left{width}", above.astype(dtype))
    right = draft.shared(f"right{width}", np.array(bits - width, dtype))
    return draft.node(
        "BitShift", draft.node("BitShift", word, left, direction="LEFT"), right, direction="RIGHT"
    )


def _by_division(draft: Draft, planes: str, width: int) -> str:
    """Divide what stands below a field away and take off what stands above: ``(fields, words)``."""
    n_fields, n_bytes = WORDS[width]
    word = draft.cast(planes, TensorProto.INT64)
    if n_bytes > 1:
        place_values = draft.shared(f"places{n_bytes}", 256 ** np.arange(n_bytes, dtype=np.int64)[:, None])
        parts = draft.node("Mul", word, place_values)  # (bytes, words)
        rows = [draft.shared(f"row{number}", np.array([number], np.int64)) for number in range(n_bytes)]
        # no ReduceSum: onnxruntime's is not exact beyond 2**53
        word = draft.node("Gather", parts, rows[0])
        for row in rows[1:]:
            word = draft.node("Add", word, draft.node("Gather", parts, row))
    below = draft.shared(f"below{width}", 2 ** (width * np.arange(n_fields, dtype=np.int64)[:, None]))
    size = draft.shared(f"values{width}", np.array(2**width, np.int64))
    field = draft.node("Div", word, below)
    above = draft.node("Mul", draft.node("Div", field, size), size)
    return draft.node("Sub", field, above)
