"""Look at a model through onnx-graphsurgeon: who makes a tensor, who uses it, where a constant stands.

The imported graph is only looked at. Node number i of a scope is node number i of the GraphProto behind it,
so what is found here can be edited in the original model.
"""

from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxdecomp.graph.constant_weights import MAY_BE_OVERRIDDEN, is_overridable
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.walk import walk

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Scope:
    """A graph: the main one or a body.

    Args:
        prefix: Key prefix of its nodes (`graph.walk`), empty for the main graph.
        proto: The graph in the original model.
        graph: The same through onnx-graphsurgeon.
        parent: The scope around it, whose tensors it sees.
    """

    prefix: str
    proto: onnx.GraphProto
    graph: gs.Graph
    parent: "Scope | None"


@dataclass(frozen=True, eq=False)
class Place:
    """A node with the scope and the position where it stands."""

    key: str
    node: gs.Node
    scope: Scope
    index: int

    @property
    def proto(self) -> onnx.NodeProto:
        """The node in the original model."""
        node: onnx.NodeProto = self.scope.proto.node[self.index]
        return node


class Lens:
    """A model and the onnx-graphsurgeon view on it.

    Raises:
        ValueError: The model cannot be seen completely; the message is a sentence that says why.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.opset = opset(model.proto)
        self.places: list[Place] = []
        self._place_of: dict[int, Place] = {}
        self._initializers: dict[Scope, dict[str, onnx.TensorProto]] = {}
        self._outputs: set[str] = set()
        _check_visible(model.proto)
        self._add_scope(Scope("", model.proto.graph, _import(model.proto), None))

    def place(self, node: gs.Node) -> Place:
        """Return where a node stands."""
        return self._place_of[id(node)]

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Tell whether a tensor, or one of the same name in another scope, leaves its graph."""
        return tensor.name in self._outputs

    def initializer(self, tensor: gs.Constant, seen_from: Scope) -> tuple[Scope, onnx.TensorProto] | str:
        """Return the scope and the proto of an initializer, or why it is no constant we can use."""
        values = tensor._values
        if isinstance(values, SparseValues) or not isinstance(values, LazyValues):
            return "its weight is stored as a sparse tensor"
        scope: Scope | None = seen_from
        while scope is not None and tensor.name not in self._initializers[scope]:
            scope = scope.parent
        if scope is None or values.tensor is not self._initializers[scope][tensor.name]:
            return f"the name '{tensor.name}' of its weight stands for two tensors"
        if is_overridable(tensor.name, scope.proto, self.model.proto.ir_version):
            return MAY_BE_OVERRIDDEN
        return scope, values.tensor

    def _add_scope(self, scope: Scope) -> None:
        self._initializers[scope] = {tensor.name: tensor for tensor in scope.proto.initializer}
        self._outputs.update(output.name for output in scope.proto.output)
        for index, (node, proto) in enumerate(zip(scope.graph.nodes, scope.proto.node, strict=True)):
            name = next((output for output in proto.output if output), f"#{index}")
            place = Place(scope.prefix + name, node, scope, index)
            self.places.append(place)
            self._place_of[id(node)] = place
            for attribute in proto.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    prefix = f"{place.key}.{attribute.name}/"
                    self._add_scope(Scope(prefix, attribute.g, node.attrs[attribute.name], scope))


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model uses; 1 for files older than opsets."""
    return max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=1)


def _check_visible(proto: onnx.ModelProto) -> None:
    if proto.training_info:
        raise ValueError("the model carries training information, which refers to its weights by name")
    for place in walk(proto.graph):
        if any(attribute.type == onnx.AttributeProto.GRAPHS for attribute in place.node.attribute):
            raise ValueError(
                f"node '{place.key}' holds a list of graphs, whose uses of a weight are not seen"
            )


def _import(proto: onnx.ModelProto) -> gs.Graph:
    with G_LOGGER.suppress(G_LOGGER.CRITICAL + 1):
        try:
            return gs.import_onnx(proto)
        except Exception as error:  # a foreign importer may fail in any way on an unusual model
            raise ValueError(f"onnx-graphsurgeon cannot import the model: {error}") from error
