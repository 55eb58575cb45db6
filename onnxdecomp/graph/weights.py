"""Constants of a graph: where they come from, and their value through Identity, Transpose, Reshape, Cast ...

A weight is an initializer (of its own graph or of one around it) or a Constant node, followed by any number
of nodes that only move or convert its elements. Such a path is read once, without touching the numbers; the
numbers are mapped and moved when they are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from onnxdecomp.graph.external import element_type, tensor_bytes
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS, Lens, Place, Scope

Array = NDArray[np.generic]

FLOAT_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
"""The element types of layers that we replace."""

PASSING = ("Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten")
"""Operators that only move or convert the elements of their first input."""

Step = tuple[str, tuple[int, ...]]
"""``("transpose", permutation)``, ``("reshape", shape)`` or ``("cast", (element type,))``."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant tensor and how it comes about.

    Args:
        source: The tensor with the stored numbers.
        origin: The same through onnx-graphsurgeon: an initializer, or the output of a Constant node.
        scope: Where the source stands.
        steps: What happens to the elements on the way.
        nodes: The nodes on the way, those of their own constants included, first to last.
        initializers: The initializers used, with their scopes.
        shape: Shape at the end.
        data_type: ONNX element type at the end.
    """

    source: TensorProto
    origin: gs.Tensor
    scope: Scope
    steps: tuple[Step, ...]
    nodes: tuple[Place, ...]
    initializers: tuple[tuple[Scope, str], ...]
    shape: tuple[int, ...]
    data_type: int

    def array(self, model: Model) -> Array:
        """Return the numbers; a view of the mapped file unless a step has to move or convert them."""
        return apply_steps(model.array(self.source), self.steps)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the source."""
        return tensor_bytes(self.source)

    def then(self, *steps: Step) -> "Constant":
        """Return the constant after more steps; consecutive transposes and reshapes become one."""
        result = self
        for step in steps:
            result = result._then(step)
        return result

    def _then(self, step: Step) -> "Constant":
        kind, values = step
        steps = list(self.steps)
        if kind == "transpose":
            shape = tuple(self.shape[axis] for axis in values)
            if steps and steps[-1][0] == kind:
                before = steps.pop()[1]
                values = tuple(before[axis] for axis in values)
            if values != tuple(range(len(values))):
                steps.append((kind, values))
            return replace(self, steps=tuple(steps), shape=shape)
        if kind == "reshape":
            if values != self.shape:
                if steps and steps[-1][0] == kind:
                    steps.pop()
                steps.append((kind, values))
            return replace(self, steps=tuple(steps), shape=values)
        if values != (self.data_type,):
            steps.append((kind, values))
        return replace(self, steps=tuple(steps), data_type=values[0])


def apply_steps(array: Array, steps: Sequence[Step]) -> Array:
    """Return `array` after the steps of a `Constant`."""
    for kind, values in steps:
        match kind:
            case "transpose":
                array = array.transpose(values)
            case "reshape":
                array = array.reshape(values)
            case _:
                array = array.astype(element_type(values[0]))
    return array


def weight_problem(weight: NDArray[np.floating]) -> str | None:
    """Return why numbers cannot be decomposed (NaN or infinite values), or None."""
    bad = weight.size - int(np.count_nonzero(np.isfinite(weight)))
    return f"{bad} of the {weight.size} weights are NaN or infinite" if bad else None


def trace(lens: Lens, tensor: gs.Tensor, scope: Scope) -> Constant | str:
    """Return the constant that `tensor`, as seen from `scope`, stands for; or why it is none.

    The reason is a sentence about a weight.
    """
    if isinstance(tensor, gs.Constant):
        found = lens.initializer(tensor, scope)
        if isinstance(found, str):
            return found
        home, stored = found
        return _constant(stored, tensor, home, (), ((home, stored.name),))
    if len(tensor.inputs) != 1:
        return f"its weight '{tensor.name}' is an input of its graph, not a constant"
    place = lens.place(tensor.inputs[0])
    proto = place.proto
    if proto.domain not in STANDARD_DOMAINS:
        return f"its weight comes from an operator {proto.op_type} of the domain '{proto.domain}'"
    if proto.op_type == "Constant":
        value = _constant_value(place)
        if value is None:
            return "its weight is a Constant node without a dense tensor"
        return _constant(value, tensor, place.scope, (place,), ())
    if proto.op_type == "DequantizeLinear":
        return "its weight is quantized (it comes through DequantizeLinear)"
    if proto.op_type not in PASSING or not proto.input:
        return f"its weight '{tensor.name}' is computed when the model runs (by {proto.op_type})"
    return _pass(lens, place)


def _constant(
    proto: TensorProto,
    origin: gs.Tensor,
    scope: Scope,
    nodes: tuple[Place, ...],
    initializers: tuple[tuple[Scope, str], ...],
) -> Constant:
    return Constant(proto, origin, scope, (), nodes, initializers, tuple(proto.dims), proto.data_type)


def _constant_value(place: Place) -> TensorProto | None:
    for attribute in place.proto.attribute:
        match attribute.name:
            case "value":
                dense: TensorProto = attribute.t
                return dense
            case "value_float":
                return _tensor([attribute.f], (), TensorProto.FLOAT)
            case "value_floats":
                return _tensor(attribute.floats, (len(attribute.floats),), TensorProto.FLOAT)
            case "value_int":
                return _tensor([attribute.i], (), TensorProto.INT64)
            case "value_ints":
                return _tensor(attribute.ints, (len(attribute.ints),), TensorProto.INT64)
    return None


def _tensor(values: Sequence[float], shape: tuple[int, ...], data_type: int) -> TensorProto:
    raw = np.asarray(values, element_type(data_type)).tobytes()
    return TensorProto(dims=shape, data_type=data_type, raw_data=raw)


def _pass(lens: Lens, place: Place) -> Constant | str:
    """Trace the first input of a passing node and add what the node does."""
    before = trace(lens, place.node.inputs[0], place.scope)
    if isinstance(before, str):
        return before
    nodes, initializers = before.nodes, before.initializers
    argument: tuple[int, ...] | None = None
    if len(place.node.inputs) > 1 and not place.node.inputs[1].is_empty():
        second = trace(lens, place.node.inputs[1], place.scope)
        if isinstance(second, str):
            return f"its weight passes a {place.proto.op_type} whose argument is no constant"
        argument = tuple(int(cast(int, v)) for v in second.array(lens.model).reshape(-1).tolist())
        nodes, initializers = nodes + second.nodes, initializers + second.initializers
    step = _step(place, before, argument)
    if isinstance(step, str):
        return step
    after = before.then(step) if step else before
    return replace(after, nodes=(*nodes, place), initializers=initializers)


def _step(place: Place, before: Constant, argument: tuple[int, ...] | None) -> Step | str | None:
    attributes = place.node.attrs
    shape, rank = before.shape, len(before.shape)
    match place.proto.op_type:
        case "Identity":
            return None
        case "Cast":
            if attributes["to"] not in FLOAT_TYPES:
                return "its weight is cast to a type that is no float"
            return "cast", (int(attributes["to"]),)
        case "Transpose":
            return "transpose", tuple(attributes.get("perm", range(rank)[::-1]))
        case "Reshape":
            if argument is None:
                return "its weight passes a Reshape older than operator set 5"
            return "reshape", _reshaped(shape, argument, keep_zero=bool(attributes.get("allowzero", 0)))
        case "Flatten":
            axis = int(attributes.get("axis", 1)) % (rank + 1)
            return "reshape", (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
        case "Squeeze":
            axes = argument if argument is not None else attributes.get("axes")
            if axes is None:
                return "reshape", tuple(n for n in shape if n != 1)
            dropped = {axis % rank for axis in axes}
            return "reshape", tuple(n for axis, n in enumerate(shape) if axis not in dropped)
    axes = argument if argument is not None else attributes["axes"]
    return "reshape", _unsqueezed(shape, axes)


def _reshaped(shape: tuple[int, ...], target: tuple[int, ...], *, keep_zero: bool) -> tuple[int, ...]:
    sizes = [shape[axis] if size == 0 and not keep_zero else size for axis, size in enumerate(target)]
    if -1 in sizes:
        others = int(np.prod([size for size in sizes if size != -1]))
        sizes[sizes.index(-1)] = int(np.prod(shape)) // max(others, 1)
    return tuple(sizes)


def _unsqueezed(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...]:
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(shape)
    return tuple(1 if axis in new else next(old) for axis in range(rank))
