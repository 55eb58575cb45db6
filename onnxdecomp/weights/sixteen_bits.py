"""Numbers in 16 bits: float16, bfloat16, and int16 times one scale.

float16 has 11 significant bits between 6e-5 and 65504; outside, and for very small numbers, it is stored
times a power of two. bfloat16 has 8 significant bits and the range of float32. int16 is the "binary
representation": equidistant numbers up to the largest.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.errors import unknown_name

Kind = Literal["float16", "bfloat16", "int16"]
Stored = NDArray[np.float16 | np.uint16 | np.int16]

KINDS: tuple[Kind, ...] = ("float16", "bfloat16", "int16")

MAX_FLOAT16 = 65504.0
SMALL_FLOAT16 = 2.0**-10
"""Numbers that are all smaller lose digits in float16, whose least step is 6e-8."""

MAX_INT16 = 32767
LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Rounded:
    """Numbers as 16 bits hold them.

    Args:
        values: float32, exactly as stored; times `factor` they are close to what was rounded.
        factor: Exactly a float32.
        note: What a user should know, as a sentence; empty when there is nothing.
    """

    values: NDArray[np.float32]
    factor: float
    note: str = ""


def rounded(numbers: NDArray[np.float64], kind: Kind) -> Rounded:
    """Round finite numbers of any shape, within the range of float32, to 16 bits each.

    Raises:
        UsageError: There is no such kind.
    """
    largest = float(np.max(np.abs(numbers)))
    if kind == "bfloat16":
        return Rounded(_to_bfloat16(numbers), 1.0)
    if kind == "int16":
        factor = max(float(np.float32(largest / MAX_INT16)), LEAST_SCALE)
        whole = np.clip(np.rint(numbers / factor), -MAX_INT16, MAX_INT16)
        return Rounded(whole.astype(np.float32), factor)
    if kind != "float16":
        raise unknown_name("type of centroids", kind, KINDS)
    if largest == 0 or SMALL_FLOAT16 <= largest <= MAX_FLOAT16:
        return Rounded(numbers.astype(np.float16).astype(np.float32), 1.0)
    factor = max(2.0 ** (np.frexp(largest)[1] - 1), LEAST_SCALE)
    note = f"centroids as large as {largest:.3g} are stored as float16 times {factor:.3g}"
    return Rounded((numbers / factor).astype(np.float16).astype(np.float32), factor, note)


def stored(values: NDArray[np.float32], kind: Kind) -> Stored:
    """Return rounded values as the 16 bits a file holds; bfloat16 as its bits in uint16."""
    if kind == "bfloat16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(np.float16) if kind == "float16" else values.astype(np.int16)


def _to_bfloat16(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to the nearest bfloat16, of two equally near ones to the even one, never to infinity."""
    bits = numbers.astype(np.float32).view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    cut = (bits + up) & np.uint32(0xFFFF0000)
    infinite = (cut & np.uint32(0x7FFFFFFF)) == np.uint32(0x7F800000)
    return np.where(infinite, cut - np.uint32(0x10000), cut).astype(np.uint32).view(np.float32)
