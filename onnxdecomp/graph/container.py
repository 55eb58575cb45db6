"""A packed model: the model file and its data files in one, coded without loss, checked on reading.

::

    magic      8 bytes    89 4F 44 5A 0D 0A 1A 0A
    version    2 bytes    1; integers have their low byte first
    streams               one after the other: for each block its parts, for each part 4 bytes that
                          count its bytes, and these
    directory             JSON, compressed by zlib: {"files": [...], "streams": [...]}
    length     8 bytes    of the directory
    checksum   32 bytes   SHA-256 of all before it

A file has ``name`` (relative to the model file's folder; empty for the model file itself, the first one),
``size`` and ``sha256``. A stream has ``file`` (the number of its file), ``ranges`` (pairs of first byte and
number of bytes, taken together in order) and ``code`` (`graph.coding.Code`: form, width, coder, context). The
ranges of a file's streams cover each byte of it once. A block holds `graph.coding.BLOCK_BYTES` of its stream
before coding, the last one less.

Each tensor of some size is a stream of its own, in the form that suits its type; what stands between them is
one more stream.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.coding import Code, blocks, decode, encode
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.streams import Stream, model_files, read_block, streams, write_block

MAGIC = b"\x89ODZ\r\n\x1a\n"
VERSION = 1

_VERSION = struct.Struct("<H")
_LENGTH = struct.Struct("<I")
_DIRECTORY_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 32
_DIRECTORY_LIMIT_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class PackedFile:
    """A file in a packed model.

    Args:
        name: Relative to the folder of the model file, with ``/``; empty for the model file itself.
        size: Bytes.
        sha256: Of its content, hexadecimal.
    """

    name: str
    size: int
    sha256: str


def pack(model: Model, sink: "Sink") -> int:
    """Write a model with its data files to a packed one and return its bytes; memory holds a block.

    Args:
        model: The model; one in memory is written as the message it is.
        sink: Takes the bytes.

    Raises:
        ModelError: A file cannot be read or written.
    """
    out = _Hashed(sink)
    out.write(MAGIC + _VERSION.pack(VERSION))
    files: list[PackedFile] = []
    coded: list[Stream] = []
    try:
        for number, (name, opened, tensors) in enumerate(model_files(model)):
            with opened() as file:
                files.append(_described(name, file))
                for stream in streams(number, file, files[-1].size, tensors):
                    coded.append(stream)
                    _write_stream(stream, file, out)
    except OSError as error:
        raise ModelError(f"the model cannot be packed: {error.strerror}") from error
    entries = {
        "files": [asdict(entry) for entry in files],
        "streams": [{"file": s.file, "ranges": s.ranges, "code": astuple(s.code)} for s in coded],
    }
    directory = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    out.write(directory + _DIRECTORY_LENGTH.pack(len(directory)))
    sink.write(out.hash.digest())
    return out.size_bytes + _CHECKSUM_BYTES


def packed_bytes(model: Model) -> int:
    """Return the bytes that a model takes when it is packed; nothing is written.

    Raises:
        ModelError: A file cannot be read.
    """
    return pack(model, _Nowhere())


class Packed:
    """A packed model that was checked as a whole.

    Args:
        path: The file.

    Attributes:
        files: What it holds, the model file first. Names are as whoever made it wrote them: where they lead
            is to be checked.

    Raises:
        ModelError: It cannot be read, is no packed model, of a newer version, cut off or altered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._check(file)
                self.files, self._streams = self._directory(file)
        except OSError as error:
            raise ModelError(f"'{path}' cannot be read: {error.strerror}") from error

    def restore(self, targets: Sequence[Path]) -> None:
        """Write the files to new ones, given in the order of `files`; memory holds a block.

        Raises:
            ModelError: A file cannot be written, or differs from what was packed.
        """
        try:
            for target in targets:
                target.touch(exist_ok=False)
            with self._path.open("rb") as packed:
                packed.seek(len(MAGIC) + _VERSION.size)
                for stream in self._streams:
                    with targets[stream.file].open("r+b") as file:
                        _read_stream(stream, packed, file)
        except OSError as error:
            raise ModelError(f"'{self._path}' cannot be unpacked: {error.strerror}") from error
        except (ValueError, struct.error) as error:
            raise self._damaged(str(error)) from error
        for target, entry in zip(targets, self.files, strict=True):
            with target.open("rb") as file:
                if _described(entry.name, file) != entry:
                    raise self._damaged(f"'{entry.name or 'the model file'}' is not what was packed")

    def _check(self, file: IO[bytes]) -> None:
        head = file.read(len(MAGIC) + _VERSION.size)
        if head[: len(MAGIC)] != MAGIC:
            raise ModelError(f"'{self._path}' is no packed model: make one with `onnxdecomp pack`")
        if len(head) < len(MAGIC) + _VERSION.size:
            raise self._damaged("it ends in its first bytes")
        (version,) = _VERSION.unpack(head[len(MAGIC) :])
        if version > VERSION:
            raise ModelError(
                f"'{self._path}' is of version {version} and this onnxdecomp reads up to {VERSION}: "
                "update it, or fetch the file again"
            )
        size_bytes = self._path.stat().st_size - _CHECKSUM_BYTES
        if size_bytes < len(head) + _DIRECTORY_LENGTH.size:
            raise self._damaged(f"it has only {size_bytes + _CHECKSUM_BYTES} bytes")
        file.seek(0)
        if _digest(file, size_bytes) != file.read():
            raise self._damaged("its checksum is another")

    def _directory(self, file: IO[bytes]) -> tuple[list[PackedFile], list[Stream]]:
        """Return the files and the streams, which cover all files and no more."""
        end = self._path.stat().st_size - _CHECKSUM_BYTES - _DIRECTORY_LENGTH.size
        try:
            file.seek(end)
            (length,) = _DIRECTORY_LENGTH.unpack(file.read(_DIRECTORY_LENGTH.size))
            file.seek(end - length)
            text = zlib.decompressobj().decompress(file.read(length), _DIRECTORY_LIMIT_BYTES)
            entries = json.loads(text)
            files = [PackedFile(**entry) for entry in entries["files"]]
            streams = [_stream(entry) for entry in entries["streams"]]
            problem = _problem(files, streams)
        except (ValueError, KeyError, TypeError, OSError, zlib.error) as error:
            raise self._damaged("its directory cannot be read") from error
        if problem:
            raise self._damaged(problem)
        return files, streams

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"'{self._path}' was cut off or altered: {what}; fetch it again")


class Sink(Protocol):
    """Takes bytes."""

    def write(self, content: bytes, /) -> object:
        """Take some bytes."""


class _Nowhere:
    """Takes bytes and keeps none."""

    def write(self, content: bytes, /) -> None:
        pass


class _Hashed:
    """Counts and hashes what it writes."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.hash, self.size_bytes = hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        self._sink.write(content)
        self.hash.update(content)
        self.size_bytes += len(content)


def _write_stream(stream: Stream, file: IO[bytes], out: _Hashed) -> None:
    for start, stop in blocks(stream.n_columns, stream.code):
        for part in encode(read_block(stream, file, start, stop), stream.code):
            out.write(_LENGTH.pack(len(part)))
            out.write(part)


def _read_stream(stream: Stream, packed: IO[bytes], file: IO[bytes]) -> None:
    for start, stop in blocks(stream.n_columns, stream.code):
        parts = []
        for _ in range(stream.code.n_parts):
            (length,) = _LENGTH.unpack(packed.read(_LENGTH.size))
            parts.append(packed.read(length))
        write_block(stream, file, start, decode(parts, stream.code, stop - start))


def _described(name: str, file: IO[bytes]) -> PackedFile:
    size_bytes = file.seek(0, 2)
    file.seek(0)
    return PackedFile(name, size_bytes, _digest(file, size_bytes).hex())


def _digest(file: IO[bytes], size_bytes: int) -> bytes:
    """Return the SHA-256 of the next bytes of a file."""
    found = hashlib.sha256()
    while size_bytes > 0:
        chunk = file.read(min(size_bytes, _CHUNK_BYTES))
        if not chunk:
            break
        found.update(chunk)
        size_bytes -= len(chunk)
    return found.digest()


def _stream(entry: dict[str, Any]) -> Stream:
    ranges = tuple((int(offset), int(length)) for offset, length in entry["ranges"])
    return Stream(int(entry["file"]), ranges, Code(*entry["code"]))


def _problem(files: Sequence[PackedFile], streams: Sequence[Stream]) -> str | None:
    """Return what is wrong with a directory."""
    names = [entry.name for entry in files]
    if not files or names[0] or len(set(names)) < len(names) or not all(names[1:]):
        return "its files have no names of their own"
    for number, entry in enumerate(files):
        ranges = sorted(place for stream in streams if stream.file == number for place in stream.ranges)
        end = 0
        for offset, length in ranges:
            if offset != end or length <= 0:
                return f"its streams do not make up '{entry.name or 'the model file'}'"
            end += length
        if end != entry.size:
            return f"its streams do not make up '{entry.name or 'the model file'}'"
    if any(not 0 <= stream.file < len(files) for stream in streams):
        return "a stream belongs to no file"
    return None
