"""Find the stored tensors of a model that layers multiply by or look up, whatever the layer.

More than `graph.find` knows: matrices of recurrent layers, tables of embeddings, all with the axis that
counts output channels. Biases, scales and other constants are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.names import graphs_by_scope
from onnxdecomp.graph.walk import NodePlace, walk
from onnxdecomp.graph.weights import FLOAT_TYPES

_RECURRENT = ("LSTM", "GRU", "RNN")

Key = tuple[str, str]
"""Key prefix of a graph (`graph.walk`) and name of a tensor in it."""


@dataclass(frozen=True)
class DenseConstant:
    """A constant with its numbers in full.

    Args:
        tensor: The numbers.
        node: Position of the Constant node that holds them; None for an initializer.
    """

    tensor: onnx.TensorProto
    node: int | None = None


@dataclass(frozen=True)
class StoredWeight:
    """A float tensor that layers use as their weight.

    Args:
        scope: Key prefix of its graph.
        name: Its name there.
        tensor: The tensor.
        axis: The axis that counts output channels; of a table, its entries.
        op_type: The operator of the first layer that uses it.
        key: The key of that layer's node (`graph.walk`).
        node_name: Its name.
    """

    scope: str
    name: str
    tensor: onnx.TensorProto
    axis: int
    op_type: str
    key: str
    node_name: str


def dense_constants(proto: onnx.ModelProto) -> dict[Key, DenseConstant]:
    """Return the initializers and the tensors in Constant nodes, those of bodies included."""
    found: dict[Key, DenseConstant] = {}
    for scope, graph in graphs_by_scope(proto).items():
        for tensor in graph.initializer:
            found[scope, tensor.name] = DenseConstant(tensor)
        for index, node in enumerate(graph.node):
            if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS:
                for attribute in node.attribute:
                    if attribute.name == "value":
                        found[scope, node.output[0]] = DenseConstant(attribute.t, index)
    return found


def find_weights(model: Model) -> list[StoredWeight]:
    """Return the float tensors that layers use as weights, each once, in the order of their first use.

    A tensor that is transposed, cast or passed on before it reaches a layer counts, too.
    """
    constants = dense_constants(model.proto)
    found: dict[Key, StoredWeight] = {}
    for key, place, index, moved in _uses(model.proto, constants):
        constant, node = constants[key], place.node
        axis = _channel_axis(node, index, len(constant.tensor.dims))
        if axis is None or constant.tensor.data_type not in FLOAT_TYPES or key in found:
            continue
        for permutation in reversed(moved):
            axis = permutation[axis]
        found[key] = StoredWeight(*key, constant.tensor, axis, node.op_type, place.key, node.name)
    return list(found.values())


def _uses(
    proto: onnx.ModelProto, constants: dict[Key, DenseConstant]
) -> Iterator[tuple[Key, NodePlace, int, tuple[tuple[int, ...], ...]]]:
    """Yield each use of a constant: its key, node, position of the input, and the Transposes on the way."""
    origins: dict[Key, tuple[Key, tuple[tuple[int, ...], ...]]] = {key: (key, ()) for key in constants}
    scopes = graphs_by_scope(proto)
    for place in walk(proto.graph):
        # the innermost graph around the node that knows the name; prefixes of scopes get shorter outwards
        around = sorted((s for s in scopes if place.scope.startswith(s)), key=len, reverse=True)
        for index, name in enumerate(place.node.input):
            key = next(((scope, name) for scope in around if (scope, name) in origins), None)
            if key is None or place.node.domain not in STANDARD_DOMAINS:
                continue
            origin, moved = origins[key]
            if place.node.op_type in ("Identity", "Cast") and index == 0:
                origins[place.scope, place.node.output[0]] = origin, moved
            elif place.node.op_type == "Transpose":
                rank = len(constants[origin].tensor.dims)
                permutation = next((tuple(a.ints) for a in place.node.attribute), tuple(range(rank)[::-1]))
                origins[place.scope, place.node.output[0]] = origin, (*moved, permutation)
            else:
                yield origin, place, index, moved


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """Return the axis of a layer's weight that counts output channels; None for what is no weight."""
    attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    match node.op_type:
        case "Conv" if index == 1:
            return 0
        case "ConvTranspose" if index == 1:
            return 1
        case "Gemm" if index < 2:
            transposed = bool(attributes.get("transB" if index else "transA", 0))
            return int(transposed != bool(index))
        case "MatMul" if rank >= 2:
            return rank - 1 if index else rank - 2
        case "Gather" if index == 0 and rank >= 2:
            return attributes.get("axis", 0) % rank
        case op_type if op_type in _RECURRENT and index in (1, 2):
            return 1
    return None
