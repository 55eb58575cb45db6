"""The bytes of a model's files as streams that are coded in one way each: tensors, and the rest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import onnx

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.bitstream import WORDS
from onnxdecomp.graph.coding import FIELDS, SAMPLE_BYTES, SHUFFLE, SHUFFLED_BYTES, Bytes, Code, code_for
from onnxdecomp.graph.external import all_tensors, element_type, is_external, is_packed, locate
from onnxdecomp.graph.io import Model

LEAST_TENSOR_BYTES = 256
"""Smaller tensors are coded together with what stands between tensors."""

Range = tuple[int, int]
Open = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Stream:
    """A run of bytes that is coded in one way.

    Args:
        file: Number of its file.
        ranges: First byte and number of bytes, taken together in order.
        code: How it is coded.

    Raises:
        ValueError: The bytes are no whole number of elements or planes.
    """

    file: int
    ranges: tuple[Range, ...]
    code: Code

    def __post_init__(self) -> None:
        if self.size_bytes % (self.code.n_planes * self.code.n_parts):
            raise ValueError(f"{self.size_bytes} bytes are not coded as {self.code}")

    @property
    def size_bytes(self) -> int:
        """Bytes before coding."""
        return sum(length for _, length in self.ranges)

    @property
    def n_columns(self) -> int:
        """Bytes of each plane."""
        return self.size_bytes // self.code.n_planes

    def places(self, start: int, stop: int) -> Iterator[Range]:
        """Yield where in the file some columns stand, plane by plane: first byte and number of bytes."""
        for plane in range(self.code.n_planes):
            first, last = (plane * self.n_columns + column for column in (start, stop))
            before = 0
            for offset, length in self.ranges:
                low, high = max(first, before), min(last, before + length)
                if low < high:
                    yield offset + low - before, high - low
                before += length


@dataclass(frozen=True)
class TensorBytes:
    """A tensor's bytes in a file, and the codes that may suit them."""

    place: Range
    codes: tuple[Code, ...]


def model_files(model: Model) -> Iterator[tuple[str, Open, list[TensorBytes]]]:
    """Yield name, content and tensors of the model file and of each data file."""
    content = model.path.read_bytes() if model.path else model.proto.SerializeToString(deterministic=True)
    yield "", partial(BytesIO, content), _inner_tensors(model.proto, content)
    outer: dict[Path, list[TensorBytes]] = {}
    for tensor in all_tensors(model.proto):
        if is_external(tensor):
            place = locate(tensor, model.base_dir)
            found = TensorBytes((place.offset, place.size_bytes), _codes(tensor))
            outer.setdefault(place.path, []).append(found)
    for path in sorted(outer):
        assert model.base_dir is not None
        yield path.relative_to(model.base_dir).as_posix(), partial(_opened, path), outer[path]


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _inner_tensors(proto: onnx.ModelProto, content: bytes) -> list[TensorBytes]:
    """Return the tensors whose bytes are found in the model file; a place is taken by what stands there."""
    found, end = [], 0
    for tensor in all_tensors(proto):
        raw = tensor.raw_data or np.asarray(tensor.float_data, np.float32).tobytes()
        if len(raw) < LEAST_TENSOR_BYTES:
            continue
        start = content.find(raw, end)
        start = content.find(raw) if start < 0 else start  # attributes stand before initializers
        if start >= 0:
            end = start + len(raw)
            found.append(TensorBytes((start, len(raw)), _codes(tensor)))
    return found


def _codes(tensor: onnx.TensorProto) -> tuple[Code, ...]:
    """Return the forms that may suit a tensor."""
    codes = [Code()]
    n_bytes = 1 if is_packed(tensor) else element_type(tensor.data_type).itemsize
    if n_bytes in SHUFFLED_BYTES:
        codes.append(Code(SHUFFLE, n_bytes))
    if tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) == 2:
        codes += [Code(FIELDS, width) for width, word in WORDS.items() if word.n_bytes == tensor.dims[0]]
    return tuple(codes)


def streams(
    number: int, file: IO[bytes], size_bytes: int, tensors: Iterable[TensorBytes]
) -> Iterator[Stream]:
    """Yield the streams of a file: each tensor of some size, and the rest."""
    rest, end = [], 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.place):
        start, length = tensor.place
        if start < end or length < LEAST_TENSOR_BYTES:
            continue
        if start > end:
            rest.append((end, start - end))
        end = start + length
        yield _chosen(number, file, (tensor.place,), tensor.codes)
    if end < size_bytes:
        rest.append((end, size_bytes - end))
    if rest:
        yield _chosen(number, file, tuple(rest), (Code(),))


def _chosen(number: int, file: IO[bytes], ranges: tuple[Range, ...], candidates: Sequence[Code]) -> Stream:
    """Return a stream in the code that does best on its first bytes."""
    fitting = []
    for code in candidates:
        try:
            fitting.append(Stream(number, ranges, code))
        except ValueError:  # a tensor whose bytes are not what its shape says
            continue
    samples = {}
    for stream in fitting:
        n_columns = min(stream.n_columns, SAMPLE_BYTES // stream.code.n_planes)
        n_columns -= n_columns % stream.code.n_parts
        samples[stream.code] = read_block(stream, file, 0, n_columns)
    return Stream(number, ranges, code_for(samples))


def read_block(stream: Stream, file: IO[bytes], start: int, stop: int) -> Bytes:
    """Return some columns of a stream: ``(planes, columns)``.

    Raises:
        ModelError: The file is shorter than it was.
    """
    block = b""
    for offset, length in stream.places(start, stop):
        file.seek(offset)
        block += file.read(length)
    if len(block) != stream.code.n_planes * (stop - start):
        raise ModelError("a file of the model became shorter while it was read: try again")
    return np.frombuffer(block, np.uint8).reshape(stream.code.n_planes, -1)


def write_block(stream: Stream, file: IO[bytes], start: int, block: Bytes) -> None:
    """Write some columns of a stream, from column `start` on, to where they stand in the file."""
    content = memoryview(block.tobytes())
    for offset, length in stream.places(start, start + block.shape[1]):
        file.seek(offset)
        file.write(content[:length])
        content = content[length:]
