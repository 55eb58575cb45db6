"""Put dense tensors back where a model holds codebooks; nothing else in it changes.

Before:  w = Gather(c, i)     with nodes that compute c and i from constants
After:   w is an initializer, where the indices were

A decoded tensor is known by the name of the node that makes it. What the node needs is followed back to
initializers and computed with numpy, whatever the form it was stored in.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.codebook import DECODED
from onnxdecomp.graph.decode import INDICES
from onnxdecomp.graph.external import all_tensors, element_type, is_external, locate
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.names import MARK, graphs_by_scope, put_initializer, remove, used_names

Array = NDArray[Any]
Attributes = Mapping[str, Any]

_IR_WITHOUT_HIDDEN_CONSTANTS = 3


@dataclass(frozen=True)
class Expanded:
    """A model with its codebooks put back to dense tensors.

    Args:
        proto: The model.
        names: The tensors that were expanded, those of bodies prefixed by the key of their graph.
    """

    proto: onnx.ModelProto
    names: tuple[str, ...]


def expand(model: Model, add_tensor: Callable[..., onnx.TensorProto]) -> Expanded:
    """Return a model whose codebooks are dense tensors again, equal to what the nodes computed bit for bit.

    A model that holds none is returned as it is.

    Args:
        model: The model as it was read; not modified.
        add_tensor: Stores an array under a name with a dtype and returns the tensor, such as
            `ModelWriter.add_tensor`.

    Raises:
        ModelError: The nodes that decode a tensor were changed so that they cannot be followed.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    old_ir = proto.ir_version <= _IR_WITHOUT_HIDDEN_CONSTANTS
    names: list[str] = []
    traces: dict[str, _Trace] = {}
    graphs = graphs_by_scope(proto)
    for scope, graph in graphs.items():
        roots = {node.output[0]: node.name for node in graph.node if node.name.endswith(DECODED)}
        if not roots:
            continue
        trace = traces[scope] = _Trace(model, scope)
        for name in roots:
            trace.follow(name)
        _drop_nodes(graph, roots.keys(), trace.computed)
        remove(graph.value_info, trace.computed - roots.keys())
        used = set(used_names(graph))
        for name, label in roots.items():
            indices = label.removesuffix(DECODED) + MARK + INDICES
            place = "" if indices in used else indices
            value = trace.value(name)  # one after the other: memory holds one
            put_initializer(graph, add_tensor(name, value, value.dtype), place, input_too=old_ir)
            names.append(scope + name)
    for home, trace in traces.items():
        for scope, graph in graphs.items():
            if home.startswith(scope):
                unused = trace.leaves.difference(used_names(graph))
                remove(graph.initializer, unused)
                remove(graph.input, unused)
    return Expanded(proto, tuple(names))


def dense_bytes(model: Model) -> int:
    """Return the bytes that a model takes with its codebooks expanded, but for a few of each tensor's head.

    Memory holds one tensor.

    Raises:
        ModelError: As `expand`.
    """
    n_bytes = 0

    def count(name: str, array: Array, dtype: np.dtype) -> onnx.TensorProto:
        nonlocal n_bytes
        n_bytes += array.nbytes
        data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return onnx.TensorProto(name=name, dims=array.shape, data_type=data_type)

    expanded = expand(model, count)
    if not expanded.names:
        return model.size_bytes
    external = {locate(t, model.base_dir) for t in all_tensors(expanded.proto) if is_external(t)}
    return int(expanded.proto.ByteSize()) + n_bytes + sum(place.size_bytes for place in external)


class _Trace:
    """Follows tensors of one graph of the original model back to constants.

    Attributes:
        leaves: Names of the initializers that were met.
        computed: Names of the tensors that were computed on the way.
    """

    def __init__(self, model: Model, scope: str) -> None:
        self._model = model
        graphs = graphs_by_scope(model.proto)
        self._makers = {output: node for node in graphs[scope].node for output in node.output}
        self._tensors = {
            tensor.name: tensor
            for prefix, graph in graphs.items()
            if scope.startswith(prefix)
            for tensor in graph.initializer
        }
        self.leaves: set[str] = set()
        self.computed: set[str] = set()

    def follow(self, name: str) -> None:
        """Note what a tensor is computed from.

        Raises:
            ModelError: It depends on more than initializers and the operators that decode.
        """
        node = self._makers.get(name)
        what = f"'{name}', which decodes a codebook,"
        if node is None and name not in self._tensors:
            raise ModelError(f"{what} is no constant: the model was altered")
        if node is None:
            self.leaves.add(name)
            return
        if node.op_type not in _OPERATORS:
            raise ModelError(f"{what} comes from {node.op_type}: the model was altered")
        self.computed.add(name)
        for source in node.input:
            self.follow(source)

    def value(self, name: str) -> Array:
        """Compute a tensor that was followed."""
        node = self._makers.get(name)
        if node is None:
            return self._model.array(self._tensors[name])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return _OPERATORS[node.op_type]([self.value(source) for source in node.input], attributes)


def _drop_nodes(graph: onnx.GraphProto, roots: Set[str], computed: Set[str]) -> None:
    """Remove the nodes that make the roots, and those before them that nothing else uses."""
    used = Counter(used_names(graph))
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        outputs = set(node.output)
        if roots & outputs or (outputs and outputs <= computed and not any(used[name] for name in outputs)):
            used.subtract(node.input)
            del graph.node[index]


def _gather(inputs: list[Array], attributes: Attributes) -> Array:
    data, indices = inputs
    return np.take(data, indices, axis=attributes.get("axis", 0))


def _slice(inputs: list[Array], attributes: Attributes) -> Array:
    data, *bounds = inputs
    starts, ends = bounds or (attributes["starts"], attributes["ends"])
    return data[int(starts[0]) : int(ends[0])]


def _shift(inputs: list[Array], attributes: Attributes) -> Array:
    values, by = inputs
    return values << by if attributes["direction"] == b"LEFT" else values >> by


_OPERATORS: dict[str, Callable[[list[Array], Attributes], Array]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "BitShift": _shift,
    "Cast": lambda inputs, attributes: inputs[0].astype(element_type(attributes["to"])),
    "Concat": lambda inputs, attributes: np.concatenate(inputs, axis=attributes["axis"]),
    "Div": lambda inputs, _: inputs[0] // inputs[1],
    "Gather": _gather,
    "GatherElements": _gather,  # of one axis each
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Reshape": lambda inputs, _: inputs[0].reshape(inputs[1]),
    "Slice": _slice,
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
}
"""The operators that decode, on numbers that are not negative where it matters."""
