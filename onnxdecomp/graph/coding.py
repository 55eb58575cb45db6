"""Bytes of tensors in fewer bytes, without loss: a form that brings like to like, then a coder.

The forms are

    raw         the bytes as they are
    shuffle N   elements of N bytes as N planes: the first bytes of all, then the second ones; exponents of
                floats are alike, the rest of them is noise
    fields W    a stream of bits (`graph.bitstream`) as fields of W bits that follow each other, as many in
                a byte as go in whole: neighbours are alike

and the coders, all of the standard library,

    huffman     Huffman codes in blocks of 32,000 symbols: DEFLATE without matches (RFC 1951)
    lzma C      LZMA2, an adaptive range coder with the upper C bits of the last byte as context

On indices of weights LZMA takes 2 to 3 % less than Huffman codes and less than the entropy of single indices,
since neighbouring weights are of like size; zstandard is never the smallest of the three. On floats Huffman
codes are the smallest, and they are read ten times faster.
"""

import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.graph.bitstream import WORDS, fields, pack

BLOCK_BYTES = 1 << 20
"""What is coded at a time; a block can be read without those before it."""

SAMPLE_BYTES = 1 << 16
"""What a form and a coder are chosen on."""

WORTH = 0.99
"""A slower coder is taken where it leaves at most this share of what the faster one does."""

RAW, SHUFFLE, FIELDS = "raw", "shuffle", "fields"
HUFFMAN, LZMA = "huffman", "lzma"
CONTEXT_BITS = (3, 4)
SHUFFLED_BYTES = (2, 4, 8)

_NO_HEADER = -15
_MOST_MEMORY = 9
_BYTE_BITS = 8

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Code:
    """How a run of bytes is coded.

    Args:
        form: `RAW`, `SHUFFLE` or `FIELDS`.
        width: Bytes of an element or bits of a field; 0 for raw bytes.
        coder: `HUFFMAN` or `LZMA`.
        context_bits: Of the last byte, for `LZMA`.

    Raises:
        ValueError: There is no such form or coder.
    """

    form: str = RAW
    width: int = 0
    coder: str = HUFFMAN
    context_bits: int = 0

    def __post_init__(self) -> None:
        widths = {RAW: (0,), SHUFFLE: SHUFFLED_BYTES, FIELDS: tuple(WORDS)}
        contexts = {HUFFMAN: (0,), LZMA: CONTEXT_BITS}
        if self.width not in widths.get(self.form, ()):
            raise ValueError(f"there is no form {self.form} {self.width}")
        if self.context_bits not in contexts.get(self.coder, ()):
            raise ValueError(f"there is no coder {self.coder} {self.context_bits}")

    @property
    def n_planes(self) -> int:
        """Rows of equal length that the bytes are a matrix of: more than one for a stream of bits."""
        return WORDS[self.width].n_bytes if self.form == FIELDS else 1

    @property
    def n_parts(self) -> int:
        """Into how many parts a block is divided, each coded alone."""
        return self.width if self.form == SHUFFLE else 1


def code_for(samples: Mapping[Code, Bytes]) -> Code:
    """Return the form, and the coder, that leave the fewest bytes of a sample.

    Args:
        samples: The first columns ``(planes, columns)``, by code; their forms count.
    """

    def share(code: Code, sample: Bytes) -> float:
        return sum(map(len, encode(sample, code))) / sample.size

    best = min(samples, key=lambda code: share(code, samples[code]))
    closer = [Code(best.form, best.width, LZMA, bits) for bits in CONTEXT_BITS]
    closest = min(closer, key=lambda code: share(code, samples[best]))
    return closest if share(closest, samples[best]) <= WORTH * share(best, samples[best]) else best


def encode(block: Bytes, code: Code) -> list[bytes]:
    """Return the coded parts of a block.

    Args:
        block: ``(planes, columns)``.
        code: How.
    """
    if code.form == FIELDS:
        parts = [_joined(fields(block, code.width).reshape(-1), code.width)]
    elif code.form == SHUFFLE:
        parts = list(block.reshape(-1, code.width).T)
    else:
        parts = [block.reshape(-1)]
    compress = _huffman if code.coder == HUFFMAN else partial(_lzma, context_bits=code.context_bits)
    return [compress(part.tobytes()) for part in parts]


def decode(parts: Sequence[bytes], code: Code, n_columns: int) -> Bytes:
    """Return the block ``(planes, columns)`` whose coded parts these are.

    Raises:
        ValueError: They do not make up such a block.
    """
    n_fields = WORDS[code.width].n_fields * n_columns if code.form == FIELDS else 0
    n_bytes = -(-n_fields // _per_byte(code.width)) if n_fields else n_columns // code.n_parts
    read = np.stack([_decoded(part, code, n_bytes) for part in parts])  # (parts, bytes)
    if code.form == FIELDS:
        return pack(_separated(read.reshape(-1), code.width, n_fields), code.width)
    return np.ascontiguousarray(read.T).reshape(1, n_columns)


def blocks(n_columns: int, code: Code) -> Iterator[tuple[int, int]]:
    """Yield the first column of each block and the one behind its last."""
    step = BLOCK_BYTES // code.n_planes
    for start in range(0, n_columns, step):
        yield start, min(start + step, n_columns)


def _per_byte(width: int) -> int:
    return max(_BYTE_BITS // width, 1)


def _joined(values: Bytes, width: int) -> Bytes:
    """Return fields with as many neighbours in a byte as go in whole, the first in the low bits."""
    per_byte = _per_byte(width)
    padded = np.zeros(-(-values.size // per_byte) * per_byte, np.uint8)
    padded[: values.size] = values
    shifted = padded.reshape(-1, per_byte) << (width * np.arange(per_byte, dtype=np.uint8))
    joined: Bytes = np.bitwise_or.reduce(shifted, axis=1)
    return joined


def _separated(joined: Bytes, width: int, n_fields: int) -> Bytes:
    """Return the fields of `_joined`."""
    places = width * np.arange(_per_byte(width), dtype=np.uint8)
    values: Bytes = (joined[:, np.newaxis] >> places) & np.uint8(2**width - 1)
    return values.reshape(-1)[:n_fields]


def _huffman(content: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, _NO_HEADER, _MOST_MEMORY, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(content) + coder.flush()


def _lzma(content: bytes, context_bits: int) -> bytes:
    return lzma.compress(content, lzma.FORMAT_RAW, filters=_filters(context_bits))


def _filters(context_bits: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "dict_size": BLOCK_BYTES, "lc": context_bits, "lp": 0, "pb": 0}]


def _decoded(part: bytes, code: Code, n_bytes: int) -> Bytes:
    """Return what a part was coded from; no more than `n_bytes` are ever made.

    Raises:
        ValueError: It was coded from another number of bytes, or is damaged.
    """
    try:
        if code.coder == HUFFMAN:
            content = zlib.decompressobj(_NO_HEADER).decompress(part, n_bytes)
        else:
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(code.context_bits))
            content = decoder.decompress(part, n_bytes)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"a part cannot be decoded: {error}") from error
    if len(content) != n_bytes:
        raise ValueError(f"a part holds {len(content)} bytes, not {n_bytes}")
    return np.frombuffer(content, np.uint8)
