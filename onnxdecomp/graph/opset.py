"""Raise the operator set of a model, on request only."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import onnx
from onnx.checker import ValidationError

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.constant_weights import overridable
from onnxdecomp.graph.external import is_external
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS, opset
from onnxdecomp.graph.names import as_input, graphs_by_scope, remove

_IR_WITHOUT_HIDDEN_CONSTANTS = 3


def raise_opset(model: Model, version: int) -> Model:
    """Return the model at a newer version of the standard operators, as onnx's converter brings it there.

    The IR version rises to what the operator set needs. What files up to IR version 3 list as inputs only
    because it is constant is listed no more: in newer files a caller might override it.

    Args:
        model: The model as it was read; not modified.
        version: The operator set to reach; the model itself is returned when it has that.

    Raises:
        UsageError: The model's operator set is newer, or onnx does not know the one asked for.
        ModelError: The converter fails or would lose a part of the model, or its result is not valid.
    """
    present, newest = opset(model.proto), onnx.defs.onnx_opset_version()
    if version > newest:
        raise UsageError(f"operator set {version} is newer than the newest that onnx knows, {newest}")
    if version < present:
        raise UsageError(f"the model has operator set {present}, which is never lowered: leave --opset out")
    if version == present:
        return model
    if model.proto.functions:
        name = model.proto.functions[0].name
        raise ModelError(
            f"onnx's version converter drops functions such as '{name}': inline them before using --opset"
        )
    try:
        proto = onnx.version_converter.convert_version(model.proto, version)
    except Exception as error:  # the converter raises whatever its C++ side does
        reason = " ".join(str(error).split())
        raise ModelError(
            f"onnx's version converter cannot bring operator set {present} to {version}: {reason}"
        ) from error
    _keep_notes(model.proto, proto)
    _raise_ir(proto)
    _check(proto, version)
    return replace(model, proto=proto)


def _raise_ir(proto: onnx.ModelProto) -> None:
    if proto.ir_version <= _IR_WITHOUT_HIDDEN_CONSTANTS:
        remove(proto.graph.input, overridable(proto.graph))
    standard = [entry for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS]
    proto.ir_version = max(proto.ir_version, onnx.helper.find_min_ir_version_for(standard))


def _keep_notes(original: onnx.ModelProto, converted: onnx.ModelProto) -> None:
    """Bring back the notes that the converter leaves out: none of them changes what the model computes."""
    before, after = graphs_by_scope(original), graphs_by_scope(converted)
    for scope in before.keys() & after.keys():
        noted = dict(_noted(before[scope]))
        for key, entry in _noted(after[scope]):
            if key in noted:
                if noted[key].doc_string:
                    entry.doc_string = noted[key].doc_string
                del entry.metadata_props[:]
                entry.metadata_props.extend(noted[key].metadata_props)
        del after[scope].quantization_annotation[:]
        after[scope].quantization_annotation.extend(before[scope].quantization_annotation)


def _noted(graph: onnx.GraphProto) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield what can bear a doc string and metadata, with a key."""
    yield ("graph", ""), graph
    for tensor in graph.initializer:
        yield ("tensor", tensor.name), tensor
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield ("value", value.name), value
    for node in graph.node:
        yield ("node", next(iter(node.output), "")), node


def _check(proto: onnx.ModelProto, version: int) -> None:
    """Check a model; tensors in other files, which the checker would look for, pass as inputs.

    Raises:
        ModelError: It is not valid.
    """
    checked = onnx.ModelProto()
    checked.CopyFrom(proto)
    for graph in graphs_by_scope(checked).values():
        external = [tensor for tensor in graph.initializer if is_external(tensor)]
        listed = {value.name for value in checked.graph.input}
        remove(graph.initializer, {tensor.name for tensor in external})
        checked.graph.input.extend(as_input(t) for t in external if t.name not in listed)
    try:
        onnx.checker.check_model(checked)
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"what onnx's version converter makes at operator set {version} is not valid: {reason}"
        ) from error
