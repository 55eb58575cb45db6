"""Make any tensor of a model an output of it, or its input, and run only what that takes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.names import reads
from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.session import Array, Feeds, Model, open_session, read_proto, run


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
    needed, _ = _needed(graph, names)
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


class Between:
    """The part of a model that makes some tensors of others, opened.

    Args:
        session: It; None where nothing has to be made.
    """

    def __init__(self, session: ort.InferenceSession | None) -> None:
        self._session = session
        self._reads = tuple(entry.name for entry in session.get_inputs()) if session else ()

    def __call__(self, given: Feeds) -> Feeds:
        """Return the given tensors and those made of them.

        Raises:
            ModelError: onnxruntime cannot run the part on these.
        """
        if self._session is None:
            return given
        return {**given, **run(self._session, {name: given[name] for name in self._reads})}


def open_between(
    proto: onnx.ModelProto, sources: Sequence[Feeds], names: Sequence[str], *, folder: Path | None = None
) -> Between | None:
    """Open the part of a model that makes some tensors of others.

    Args:
        proto: The model; not modified.
        sources: The tensors it starts from, batch by batch, which say their types and shapes.
        names: Tensors of the main graph. Those that are given are not made.
        folder: Where external data lies.

    Returns:
        None when it takes more than what is given.

    Raises:
        ModelError: onnxruntime cannot load the part.
    """
    given = sources[0]
    wanted = [name for name in dict.fromkeys(names) if name not in given]
    if not wanted:
        return Between(None)
    needed, used = _needed(proto.graph, wanted, given)
    constants = {entry.name for entry in proto.graph.initializer}
    if any(entry.name in used and entry.name not in {*given, *constants} for entry in proto.graph.input):
        return None
    graph = onnx.GraphProto(name=proto.graph.name)
    graph.node.extend(proto.graph.node[index] for index in sorted(needed))
    graph.initializer.extend(entry for entry in proto.graph.initializer if entry.name in used)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    graph.input.extend(_input(name, [feed[name] for feed in sources]) for name in given if name in used)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    part = onnx.ModelProto(ir_version=max(proto.ir_version, 4), graph=graph)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    return Between(open_session(part, folder=folder))


def varying(graph: onnx.GraphProto) -> set[str]:
    """Return the inputs of a graph and the tensors of it that depend on them."""
    found = {entry.name for entry in graph.input} - {entry.name for entry in graph.initializer}
    for node in graph.node:
        if not found.isdisjoint(reads(node)):
            found.update(name for name in node.output if name)
    return found


def made_of(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """Return some tensors and all that they are made of."""
    return _needed(graph, names)[1]


def unseen_from(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """Return the keys of the nodes, those of bodies included, that some tensors do not depend on."""
    used = made_of(graph, names)
    found, is_seen = set(), True
    for place in walk(graph):
        if not place.scope:
            is_seen = not used.isdisjoint(place.node.output)
        if not is_seen:
            found.add(place.key)
    return found


def _needed(
    graph: onnx.GraphProto, names: Iterable[str], given: Iterable[str] = ()
) -> tuple[set[int], set[str]]:
    """Return the indices of the nodes that make some tensors of given ones, and all tensors these read."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    pending, needed, used = list(names), set(), set()
    known = set(given)
    while pending:
        name = pending.pop()
        used.add(name)
        index = producers.get(name)
        if name not in known and index is not None and index not in needed:
            needed.add(index)
            pending += filter(None, reads(graph.node[index]))  # an input left out has an empty name
    return needed, used


def _input(name: str, arrays: Sequence[Array]) -> onnx.ValueInfoProto:
    """Return the input that takes all of these arrays: an axis on which they differ is open."""
    first = arrays[0]
    if any(array.ndim != first.ndim or array.dtype != first.dtype for array in arrays):
        raise ModelError(f"Tensor '{name}' has another rank or type from one batch to the next.")
    shape = [
        sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(a.shape for a in arrays), strict=True)
    ]
    kind = onnx.helper.np_dtype_to_tensor_dtype(first.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, shape)
