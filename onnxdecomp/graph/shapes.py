"""Shapes of tensors as far as they are known without running the model."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod

import onnx
import onnx_graphsurgeon as gs

from onnxdecomp.graph.io import SMALL_TENSOR_BYTES
from onnxdecomp.graph.lens import Scope
from onnxdecomp.graph.walk import walk
from onnxdecomp.layer import OpType

Dims = tuple[int | None, ...]

FLATTENING = frozenset(["Flatten", "Reshape"])
"""Operators that make one axis of several."""

KEEPING = frozenset(["Cast", "Clip", "Dropout", "Identity", "LeakyRelu", "Relu"])
"""Operators that may stand between a tensor that was flattened and a matrix."""


class StaticShapes:
    """Shapes by ONNX shape inference; a dimension that is not fixed is None.

    Weights are not needed for it: the inference sees their shapes only.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        skeleton = _skeleton(proto)
        # a model that cannot be inferred still has the shapes written in it
        with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            skeleton = onnx.shape_inference.infer_shapes(skeleton)
        self._shapes: dict[str, dict[str, Dims]] = {"": _declared(skeleton.graph)}
        for place in walk(skeleton.graph):
            if place.scope not in self._shapes:
                self._shapes[place.scope] = _declared(place.graph)

    def of(self, name: str, scope: Scope) -> Dims | None:
        """Return the shape of a tensor as seen from a scope, or None."""
        seen: Scope | None = scope
        while seen is not None:
            shape = self._shapes.get(seen.prefix, {}).get(name)
            if shape is not None:
                return shape
            seen = seen.parent
        return None


def layer_in_shape(
    op_type: OpType,
    static: Dims | None,
    observed: Mapping[str, tuple[int, ...]],
    key: str,
    *,
    transposed: bool,
) -> tuple[int, ...] | None:
    """Return ``(N, *spatial)`` of a layer's input: by inference, else as observed, else with a batch of one.

    Args:
        op_type: Operator of the layer.
        static: Shape of its data input by inference.
        observed: Shapes seen in a run, by node key.
        key: Key of the node.
        transposed: The rows of a matrix product stand on the last axis of the data input (transA, or the
            constant is the left operand).
    """
    counted = _counted(op_type, static, transposed=transposed) if static is not None else None
    if counted is not None and None not in counted:
        return _normal(op_type, counted)
    if key in observed:
        return _normal(op_type, _counted(op_type, observed[key], transposed=transposed))
    if counted and None not in counted[1:]:
        return _normal(op_type, (1, *counted[1:]))
    return None


def flattened_axes(data: gs.Tensor, shapes: StaticShapes, scope: Scope, width: int) -> tuple[int, ...]:
    """Return the axes that the last axis of a tensor was before it was flattened; empty where unknown.

    Args:
        data: The data input of a matrix.
        shapes: Shapes of the model's tensors.
        scope: Where the matrix stands.
        width: Size of that axis.
    """
    while data.inputs and data.inputs[0].inputs and data.inputs[0].op in KEEPING:
        data = data.inputs[0].inputs[0]
    if not data.inputs or data.inputs[0].op not in FLATTENING:
        return ()
    axes: list[int] = []
    for size in reversed(shapes.of(data.inputs[0].inputs[0].name, scope) or ()):
        if size is None or prod(axes) >= width:
            break
        axes.insert(0, size)
    return tuple(axes) if len(axes) > 1 and prod(axes) == width else ()


def _counted(op_type: OpType, shape: Dims, *, transposed: bool) -> Dims:
    """Drop the channel axis, which the weight knows; the batch comes first."""
    if op_type in ("Conv", "ConvTranspose"):
        return shape[:1] + shape[2:]
    if len(shape) < 2:
        return (1,)
    return (*shape[:-2], shape[-1]) if transposed else shape[:-1]


def _normal(op_type: OpType, counted: Sequence[int | None]) -> tuple[int, ...]:
    sizes = tuple(int(size or 0) for size in counted)
    return sizes if op_type in ("Conv", "ConvTranspose") else (prod(sizes),)


def _skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with empty weights: small ones, which may be shapes, keep their numbers."""
    skeleton = onnx.ModelProto(ir_version=proto.ir_version)
    skeleton.opset_import.extend(proto.opset_import)
    skeleton.functions.extend(proto.functions)
    graph = skeleton.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        if tensor.ByteSize() <= SMALL_TENSOR_BYTES:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(
                name=tensor.name,
                dims=tensor.dims,
                data_type=tensor.data_type,
                data_location=onnx.TensorProto.EXTERNAL,
            )
    return skeleton


def _declared(graph: onnx.GraphProto) -> dict[str, Dims]:
    shapes = {}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                int(dim.dim_value) if dim.dim_value > 0 else None for dim in tensor.shape.dim
            )
    return shapes
