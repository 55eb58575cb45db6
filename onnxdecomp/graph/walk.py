"""Walk over every node of a model, bodies of If, Loop and Scan included, with a key that is unique.

ONNX names are unique within one graph and must not shadow an outer one, but the two branches of an If may
use the same name twice. A node's key is therefore the name of its first output, prefixed inside a body by
the key of the node that owns the body and the name of the attribute::

    y                       a node of the main graph
    y.then_branch/conv_out  a node inside the then-branch of the If node whose first output is y
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class NodePlace:
    """A node and where it stands.

    Args:
        key: Unique name of the node, as above. A node without any named output has its position as name.
        node: The node.
        graph: The graph that holds it.
        index: Its position in `graph.node`.
        scope: Key prefix of `graph`: empty for the main graph.
    """

    key: str
    node: onnx.NodeProto
    graph: onnx.GraphProto
    index: int
    scope: str


def walk(graph: onnx.GraphProto, scope: str = "") -> Iterator[NodePlace]:
    """Yield every node of `graph` and of the bodies inside it, outer nodes before their bodies."""
    for index, node in enumerate(graph.node):
        name = next((output for output in node.output if output), f"#{index}")
        key = scope + name
        yield NodePlace(key, node, graph, index, scope)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from walk(attribute.g, f"{key}.{attribute.name}/")
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for number, body in enumerate(attribute.graphs):
                    yield from walk(body, f"{key}.{attribute.name}[{number}]/")


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that are attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
