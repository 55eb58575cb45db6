"""Exchange the numbers of initializers that are known by name; every other byte of the model stays.

They stand in the main graph, or in a body if nothing else in the model bears their name.

A tensor keeps the field of the message that it was stored in, or its place in the data file: the new data
file is a copy of the old one with other numbers at the same offsets.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.external import ExternalRange, all_tensors, element_type, is_external, locate
from onnxdecomp.graph.io import Model, ModelWriter
from onnxdecomp.graph.names import named_initializers

Array = NDArray[np.generic]
Values = Mapping[str, Array]

_TYPED_FIELDS = ("float_data", "double_data", "int32_data")
"""Fields that hold numbers of floating point one by one; int32_data the bits of those of 16."""


class NumbersWriter(ModelWriter):
    """Writes a model with other numbers in some of its initializers, all of it or nothing.

    Args:
        model: The model; neither it nor its files are changed.
        out_path: The file to write; None to keep the result in memory.

    Raises:
        ModelError: As `ModelWriter`.
    """

    def __init__(self, model: Model, out_path: str | Path | None) -> None:
        super().__init__(model, out_path)
        self._values: Values = {}

    def stage_numbers(self, values: Values) -> Path | onnx.ModelProto:
        """Write the model with new numbers to the temporary folder, see `ModelWriter.stage`.

        What was staged before is replaced.

        Args:
            values: New numbers by name of the initializer, of its shape; they are cast to its element type.

        Raises:
            ModelError: A name is no initializer or one of several in bodies, its shape is another, a number
                does not fit into the element type, or a file cannot be written.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model.proto)
        tensors = named_initializers(proto)
        for name, value in values.items():
            if name not in tensors:
                raise ModelError(
                    f"'{name}' is no initializer of the model, or one of several tensors of that name in its "
                    "bodies: its numbers cannot be exchanged"
                )
            if tuple(tensors[name].dims) != value.shape:
                shape = tuple(tensors[name].dims)
                raise ModelError(f"'{name}' has shape {shape}: numbers of shape {value.shape} do not fit")
        if self._data is not None:
            self._data.close()
            Path(self._data.name).unlink()
            self._data = None
        self._values = {name: _cast(tensors[name], value) for name, value in values.items()}
        for name, value in self._values.items():
            if self._out is None or not is_external(tensors[name]):
                _exchange(tensors[name], value)
        return self.stage(proto)

    def _with_data_copied(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return `proto` referring to our data file: the old files one behind the other, numbers exchanged.

        Numbers that share their place with another tensor go behind all of it.
        """
        copied = onnx.ModelProto()
        copied.CopyFrom(proto)
        starts = {
            path: self._copy(ExternalRange(path, 0, path.stat().st_size))
            for path in sorted(self._model.data_files)
        }
        external = [tensor for tensor in all_tensors(copied) if is_external(tensor)]
        places = [locate(tensor, self._model.base_dir) for tensor in external]
        named = {name: t for name, t in named_initializers(copied).items() if name in self._values}
        changed = {n: locate(t, self._model.base_dir) for n, t in named.items() if is_external(t)}
        for tensor, place in zip(external, places, strict=True):
            self._move(tensor, starts[place.path.resolve()] + place.offset)
        for name, place in changed.items():
            raw = _raw(self._values[name])
            if sum(_overlap(place, other) for other in places) == 1:
                self._overwrite(starts[place.path.resolve()] + place.offset, raw)
            else:
                self._move(named[name], self._append(raw))
            _drop_checksum(named[name])
        return copied

    def _overwrite(self, offset: int, raw: memoryview) -> None:
        assert self._data is not None
        try:
            end = self._data.tell()
            self._data.seek(offset)
            self._data.write(raw)
            self._data.seek(end)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _move(self, tensor: onnx.TensorProto, offset: int) -> None:
        """Let a tensor refer to our data file, leaving the entries that stay true as they are."""
        entries = {entry.key: entry for entry in tensor.external_data}
        assert self._data is not None
        entries["location"].value = Path(self._data.name).name
        if int(entries["offset"].value if "offset" in entries else 0) != offset:
            if "offset" not in entries:
                entries["offset"] = tensor.external_data.add(key="offset")
            entries["offset"].value = str(offset)


def _drop_checksum(tensor: onnx.TensorProto) -> None:
    for entry in [entry for entry in tensor.external_data if entry.key == "checksum"]:
        tensor.external_data.remove(entry)


def _cast(tensor: onnx.TensorProto, value: Array) -> Array:
    """Return numbers in the element type of a tensor, in C order."""
    element = element_type(tensor.data_type)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(value, element).reshape(value.shape)
    if not np.all(np.isfinite(cast.astype(np.float64)) | ~np.isfinite(value.astype(np.float64))):
        raise ModelError(f"the new values of '{tensor.name}' are too large for {element}")
    return cast


def _raw(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _exchange(tensor: onnx.TensorProto, value: Array) -> None:
    """Put numbers into the field of the message that holds those of the tensor."""
    for name in _TYPED_FIELDS:
        stored = getattr(tensor, name)
        if len(stored):
            flat = value.reshape(-1)
            stored[:] = (flat.view(np.uint16) if name == "int32_data" else flat).tolist()
            return
    if is_external(tensor):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    tensor.raw_data = bytes(_raw(value))


def _overlap(one: ExternalRange, other: ExternalRange) -> bool:
    """Tell whether two parts of data files share a byte; an empty one shares itself."""
    if one == other:
        return True
    same = one.path.resolve() == other.path.resolve()
    begin, end = (
        max(one.offset, other.offset),
        min(one.offset + one.size_bytes, other.offset + other.size_bytes),
    )
    return same and begin < end
