"""Read and write models: external data is mapped, not read; a file is complete or it is not there."""

import os
import secrets
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import DTypeLike, NDArray
from onnx import ModelProto, TensorProto

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.external import (
    ExternalRange,
    all_tensors,
    element_type,
    is_external,
    is_packed,
    locate,
)
from onnxdecomp.graph.names import taken_prefixes

INLINE_LIMIT_BYTES = 1_800_000_000
"""Above this size the weights go to a data file: a protobuf message ends at 2 GiB."""

SMALL_TENSOR_BYTES = 1024
"""A tensor up to this size stays in the model file, where shape inference can read it."""

_PAGE_BYTES, _PAGED_BYTES, _LINE_BYTES = 4096, 1 << 20, 64
"""External tensors from 1 MiB on begin at a page, as ONNX advises for files that are mapped; smaller ones at
a cache line, since pages would make models of many small tensors larger."""

_CHUNK_BYTES = 1 << 24


@dataclass
class Model:
    """A model as it was read; never modified.

    Args:
        proto: The model, without its external data.
        base_dir: Folder of the external data; None for a model in memory.
        path: The file it came from; None for a model in memory.
    """

    proto: ModelProto
    base_dir: Path | None = None
    path: Path | None = None

    def array(self, tensor: TensorProto) -> NDArray[np.generic]:
        """Return the elements of a tensor of this model; those of an external one are mapped, read-only.

        Raises:
            ModelError: The external data cannot be reached.
        """
        if not is_external(tensor):
            return onnx.numpy_helper.to_array(tensor)
        place = locate(tensor, self.base_dir)
        shape, dtype = tuple(tensor.dims), element_type(tensor.data_type)
        if is_packed(tensor):
            raw = np.fromfile(place.path, np.uint8, place.size_bytes, offset=place.offset)
            unpacked = TensorProto(dims=shape, data_type=tensor.data_type, raw_data=raw.tobytes())
            return onnx.numpy_helper.to_array(unpacked)
        if not place.size_bytes:
            return np.empty(shape, dtype)
        return np.memmap(place.path, dtype, mode="r", offset=place.offset, shape=shape)

    @cached_property
    def message_bytes(self) -> int:
        """Size of the message, counted once: that takes about as long as writing it."""
        return int(self.proto.ByteSize())

    @cached_property
    def taken_prefixes(self) -> frozenset[str]:
        """What stands before our mark in its names, looked for once (`graph.names`)."""
        return frozenset(taken_prefixes(self.proto))

    @property
    def data_files(self) -> set[Path]:
        """The files of the external data, resolved."""
        external = (tensor for tensor in all_tensors(self.proto) if is_external(tensor))
        return {locate(tensor, self.base_dir).path.resolve() for tensor in external}

    @property
    def size_bytes(self) -> int:
        """Size of the model file (in memory: of the message) and of its external data."""
        own = self.path.stat().st_size if self.path else self.message_bytes
        return int(own + sum(path.stat().st_size for path in self.data_files))


def load(source: str | Path | ModelProto) -> Model:
    """Read a model, leaving external data where it is, and check that it can be worked on.

    Raises:
        ModelError: The file is missing, no model or empty, or its external data cannot be reached.
    """
    if isinstance(source, ModelProto):
        model, name = Model(source), "the model in memory"
    else:
        path = Path(source)
        model, name = Model(_parse(path), path.parent, path), f"'{path}'"
    proto = model.proto
    if not proto.graph.node:
        raise ModelError(f"{name} is not an ONNX model with a graph: it has no nodes")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise ModelError(f"{name} names no operator set: it is no ONNX model or was cut off")
    for tensor in all_tensors(proto):
        if is_external(tensor):
            locate(tensor, model.base_dir)
    return model


def with_data_inside(model: Model, max_bytes: int) -> Model:
    """Return the model with its external data in the message, if that takes no more; else as it is."""
    if not model.data_files or model.size_bytes > min(max_bytes, INLINE_LIMIT_BYTES):
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    onnx.load_external_data_for_model(proto, str(model.base_dir))
    return Model(proto, model.base_dir)


def as_stored(name: str, array: NDArray[np.generic], dtype: DTypeLike) -> NDArray[np.generic]:
    """Return an array as `dtype`, in one piece.

    Raises:
        ModelError: A value does not fit into `dtype`.
    """
    element = np.dtype(dtype)
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(array, element)
    except FloatingPointError as error:
        raise ModelError(f"the values of '{name}' are too large for {element}") from error


def _parse(path: Path) -> ModelProto:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder: name the .onnx file in it")
    if not path.exists():
        raise ModelError(f"'{path}' does not exist: check the path of the model")
    try:
        proto: ModelProto = ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError(f"'{path}' is not an ONNX model, or it was cut off: fetch it again") from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}") from error
    return proto


class ModelWriter:
    """Write a model made from `model`, all of it or nothing.

    Large weights are streamed to a data file beside the output as they come, so that memory holds one
    layer at a time. Files stand in a temporary folder until `publish`, complete from `stage` on, so that
    the model can be run before it takes the place of what was there; leaving without it removes them.

    Args:
        model: The model that the result is made from.
        out_path: The file to write; None to keep the result in memory, where tensors that were not
            rewritten still refer to the external data of `model`.

    Attributes:
        result: The published model when `out_path` is None.

    Raises:
        ModelError: The output cannot be written, or it would overwrite a file that `model` is read from.
    """

    def __init__(self, model: Model, out_path: str | Path | None) -> None:
        self.result: ModelProto | None = None
        self._staged_bytes = 0
        self._staged: ModelProto | None = None
        self._model = model
        self._out = Path(out_path) if out_path is not None else None
        self._external = False
        self._inline_bytes = model.message_bytes
        self._added: set[str] = set()
        self._data: IO[bytes] | None = None
        self._folder: Path | None = None
        if self._out:
            self._check_output(self._out)
            self._external = bool(model.data_files) or self._inline_bytes > INLINE_LIMIT_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._data:
            self._data.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def size_bytes(self) -> int:
        """Size of the staged model file (in memory: of the message) and of its data; 0 before `stage`."""
        if self._out is None and self._staged is not None:
            files = self._model.data_files
            return int(self._staged.ByteSize() + sum(path.stat().st_size for path in files))
        return self._staged_bytes

    def add_tensor(self, name: str, array: NDArray[np.generic], dtype: DTypeLike) -> TensorProto:
        """Store an array as `dtype` and return the tensor that stands for it in the model.

        Raises:
            ModelError: A value does not fit into `dtype`, the disk is full, or the result is too large to
                stay in memory.
        """
        stored = as_stored(name, array, dtype)
        tensor = TensorProto(
            name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(stored.dtype)
        )
        self._added.add(name)
        raw = stored.reshape(-1).view(np.uint8)
        if self._inline_bytes + raw.nbytes > INLINE_LIMIT_BYTES:
            if self._out is None:
                raise ModelError("the result is too large for one message in memory: name an output file")
            self._external = True
        if self._external and raw.nbytes > SMALL_TENSOR_BYTES:
            self._refer(tensor, self._append(raw.data, raw.nbytes), raw.nbytes)
        else:
            self._inline_bytes += raw.nbytes
            tensor.raw_data = raw.tobytes()
        return tensor

    def stage(self, proto: ModelProto) -> Path | ModelProto:
        """Write the model to the temporary folder; untouched external data is copied in chunks.

        Args:
            proto: The model; not modified.

        Returns:
            Where the complete model stands until it is published; `proto` when there is no output path.

        Raises:
            ModelError: A file cannot be written.
        """
        self._staged = proto
        if self._out is None:
            return proto
        if self._external:
            proto = self._with_data_copied(proto)
        try:
            if self._data:
                self._data.close()
            staged = self._temporary_folder() / self._out.name
            staged.write_bytes(proto.SerializeToString(deterministic=True))
            self._staged_bytes = sum(path.stat().st_size for path in self._temporary_folder().iterdir())
        except (OSError, EncodeError, ValueError) as error:
            raise self._cannot_write(error) from error
        return staged

    def publish(self) -> None:
        """Give the staged files their names, the data before the model that refers to it.

        Raises:
            ModelError: A file cannot be written.
        """
        if self._out is None or self._folder is None:
            self.result = self._staged
            return
        try:
            for target in (_data_path(self._out), self._out):
                staged = self._folder / target.name
                if staged.exists():
                    staged.replace(target)
        except OSError as error:
            raise self._cannot_write(error) from error

    def commit(self, proto: ModelProto) -> None:
        """Stage and publish a model at once."""
        self.stage(proto)
        self.publish()

    def _check_output(self, out: Path) -> None:
        if out.is_dir():
            raise ModelError(f"'{out}' is a folder: name the .onnx file to write")
        if not out.parent.is_dir():
            raise ModelError(f"'{out}' cannot be written: the folder '{out.parent}' does not exist")
        if not os.access(out.parent, os.W_OK):
            raise ModelError(f"'{out}' cannot be written: the folder '{out.parent}' is read-only")
        sources = set(self._model.data_files)
        if self._model.path:
            sources.add(self._model.path.resolve())
        for target in (out, _data_path(out)):
            if target.resolve() in sources:
                raise ModelError(f"writing '{out}' would overwrite '{target}', which the input is read from")

    def _with_data_copied(self, proto: ModelProto) -> ModelProto:
        """Return `proto` with all external tensors in our data file; a range used twice is copied once."""
        copied = ModelProto()
        copied.CopyFrom(proto)
        offsets: dict[ExternalRange, int] = {}
        for tensor in all_tensors(copied):
            if is_external(tensor) and tensor.name not in self._added:
                place = locate(tensor, self._model.base_dir)
                if place not in offsets:
                    offsets[place] = self._copy(place)
                self._refer(tensor, offsets[place], place.size_bytes)
        return copied

    def _refer(self, tensor: TensorProto, offset: int, size_bytes: int) -> None:
        assert self._out is not None
        location = _data_path(self._out).name
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", offset), ("length", size_bytes)):
            tensor.external_data.add(key=key, value=str(value))

    def _copy(self, place: ExternalRange) -> int:
        start = self._append(memoryview(b""), place.size_bytes)
        with place.path.open("rb") as file:
            file.seek(place.offset)
            left = place.size_bytes
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ModelError(f"'{place.path}' became shorter while it was read")
                self._append(memoryview(chunk))
                left -= len(chunk)
        return start

    def _append(self, content: memoryview, tensor_bytes: int | None = None) -> int:
        """Add bytes to the data file and return where they start.

        Args:
            content: The bytes.
            tensor_bytes: Size of the tensor that begins here; None where they go on with one.
        """
        assert self._out is not None
        try:
            if self._data is None:
                self._data = (self._temporary_folder() / _data_path(self._out).name).open("xb")
            if tensor_bytes is not None:
                alignment = _PAGE_BYTES if tensor_bytes >= _PAGED_BYTES else _LINE_BYTES
                self._data.write(b"\0" * (-self._data.tell() % alignment))
            start = self._data.tell()
            self._data.write(content)
        except OSError as error:
            raise self._cannot_write(error) from error
        return start

    def _temporary_folder(self) -> Path:
        """Return the folder that the output grows in: beside it, so that a rename moves it into place."""
        assert self._out is not None
        if self._folder is None:
            self._folder = self._out.with_name(f".{self._out.name}.{secrets.token_hex(4)}.tmp")
            self._folder.mkdir()
        return self._folder

    def _cannot_write(self, error: Exception) -> ModelError:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        return ModelError(f"'{self._out}' cannot be written: {reason}")


def _data_path(out: Path) -> Path:
    return out.with_name(out.name + ".data")
