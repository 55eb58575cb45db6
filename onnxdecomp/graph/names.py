"""Names in a model, and what bears them: ours are marked and unique, those nobody uses are dropped."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import onnx

from onnxdecomp.graph.walk import bodies, walk

MARK = "/onnxdecomp/"
"""Stands in every name we make, so that a prefix not used before makes it unique."""


def fresh(name: str, taken: set[str]) -> str:
    """Return `name`, with a number behind it when it is taken, and take it."""
    number, prefix = 1, name
    while prefix in taken:
        number += 1
        prefix = f"{name}_{number}"
    taken.add(prefix)
    return prefix


def taken_prefixes(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield what stands before our mark in names of the model, which then was converted before."""
    for name in _all_names(proto):
        at = name.find(MARK)
        while at >= 0:
            yield name[:at]
            at = name.find(MARK, at + 1)


def graphs_by_scope(proto: onnx.ModelProto) -> dict[str, onnx.GraphProto]:
    """Return the main graph, as ``""``, and every body under its key prefix (`graph.walk`)."""
    graphs = {"": proto.graph}
    for place in walk(proto.graph):
        for attribute in place.node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                graphs[f"{place.key}.{attribute.name}/"] = attribute.g
            for number, body in enumerate(attribute.graphs):
                graphs[f"{place.key}.{attribute.name}[{number}]/"] = body
    return graphs


def lone_initializers(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers of bodies that alone bear their name in the main graph and in all its bodies.

    An initializer that is also an input of its body, the default of it, is none of them.
    """
    graphs = graphs_by_scope(proto)
    borne = Counter(name for graph in graphs.values() for name in _borne_names(graph))
    return {
        tensor.name: tensor
        for scope, graph in graphs.items()
        if scope
        for tensor in graph.initializer
        if borne[tensor.name] == 1
    }


def named_initializers(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers that a name is enough for: of the main graph, then `lone_initializers`."""
    return {tensor.name: tensor for tensor in proto.graph.initializer} | lone_initializers(proto)


def used_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield each use of a tensor in a graph and in the bodies inside it."""
    yield from (output.name for output in graph.output)
    bodies = {}
    for place in walk(graph):
        yield from place.node.input
        bodies[place.scope] = place.graph
    for scope, body in bodies.items():
        if scope:
            yield from (output.name for output in body.output)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, and all names that are used in its bodies."""
    yield from node.input
    for body in bodies(node):
        yield from used_names(body)


def remove(entries: Any, names: set[str]) -> None:
    """Delete the entries of a repeated field that have one of the names."""
    for index in range(len(entries) - 1, -1, -1):
        if entries[index].name in names:
            del entries[index]


def as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    """Return the graph input that a file of IR version 3 needs beside an initializer."""
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def put_initializer(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, old_name: str, *, input_too: bool
) -> None:
    """Put a tensor where another initializer stands, whose notes it keeps; behind all if there is none.

    Args:
        graph: The graph, which is changed.
        tensor: The new initializer.
        old_name: The initializer that goes.
        input_too: Do the same among the inputs of the graph.
    """
    old = next((entry for entry in graph.initializer if entry.name == old_name), None)
    if old is None:
        graph.initializer.append(tensor)
    else:
        note, properties = old.doc_string, list(old.metadata_props)
        old.CopyFrom(tensor)
        if note:
            old.doc_string = note
        old.metadata_props.extend(properties)
    if input_too:
        listed = next((entry for entry in graph.input if entry.name == old_name), None)
        if listed is None:
            graph.input.append(as_input(tensor))
        else:
            listed.name = tensor.name
            listed.type.CopyFrom(as_input(tensor).type)


def _borne_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of each tensor that a graph takes, holds or computes, without the bodies inside it."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from node.output


def _all_names(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of nodes and tensors in all scopes."""
    for place in walk(proto.graph):
        yield place.node.name
        yield from place.node.input
        yield from place.node.output
    for graph in graphs_by_scope(proto).values():
        values: Iterable[onnx.ValueInfoProto | onnx.TensorProto]
        values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
        yield from (value.name for value in values)
