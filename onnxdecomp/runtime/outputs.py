"""Make any tensor of a model an output of it, and run only what that takes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from onnxdecomp.runtime.session import Model, open_session, read_proto


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy that puts out the tensors of these names, without the nodes that none of them needs.

    onnxruntime itself would run those nodes.

    Args:
        proto: The model; not modified.
        names: Tensors of the main graph, inputs and constants included, each once.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    graph = copied.graph
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    pending, needed = list(names), set()
    while pending:
        index = producers.get(pending.pop())
        if index is not None and index not in needed:
            needed.add(index)
            pending += read_by(graph.node[index])
    for index in range(len(graph.node) - 1, -1, -1):
        if index not in needed:
            del graph.node[index]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copied


def open_outputs(
    model: Model, names: Sequence[str], *, threads: int = 1, folder: Path | None = None
) -> ort.InferenceSession:
    """Return a session that puts out these tensors alone.

    Args:
        model: The model or its path; not modified.
        names: Tensors of the main graph; one that is named twice is put out once.
        threads: Threads inside an operator.
        folder: Where the external data of a model in memory lies.

    Raises:
        ModelError: onnxruntime cannot load the model, or a tensor is not in it.
    """
    folder = model.parent if isinstance(model, Path) else folder
    proto = with_outputs(read_proto(model), list(dict.fromkeys(names)))
    return open_session(proto, threads=threads, folder=folder)


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those that its bodies take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from read_by(inner)
