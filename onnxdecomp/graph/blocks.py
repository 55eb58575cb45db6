"""Cut a model at tensors into blocks, each a model of its own that reads what the cuts hold.

Before:  x -> conv1 -> a -> relu -> conv2 -> b -> y
After:   (x -> conv1 -> a)   (a -> relu -> conv2 -> b)   (b -> y)     cut at a and b
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from onnxdecomp.graph.io import Model
from onnxdecomp.graph.names import reads


@dataclass(frozen=True)
class Block:
    """A part of a model.

    Args:
        model: The part, with the initializers that its nodes read and no others.
        reads: Tensors it is fed with: cuts, and inputs of the whole model.
        outputs: What it puts out: one cut, or the outputs of the whole model.
    """

    model: Model
    reads: tuple[str, ...]
    outputs: tuple[str, ...]


def blocks(model: Model, cuts: Mapping[str, int]) -> Iterator[Block]:
    """Yield the blocks of a model in the order of its nodes; the last puts out what the model does.

    Args:
        model: The model; not modified.
        cuts: Element types of the tensors to cut at, by name.
    """
    graph = model.proto.graph
    for node in graph.node:
        for name in node.output:
            if name in cuts:
                yield _block(model, cuts, (name,))
    yield _block(model, cuts, tuple(value.name for value in graph.output))


def _block(model: Model, cuts: Mapping[str, int], outputs: tuple[str, ...]) -> Block:
    """Return the nodes that the outputs need, back to the next cuts."""
    graph = model.proto.graph
    needed, chosen = set(outputs), []
    for node in reversed(graph.node):
        if any(name in needed and (name in outputs or name not in cuts) for name in node.output):
            chosen.append(node)
            needed.update(reads(node))
    made = {name for node in chosen for name in node.output if name not in cuts or name in outputs}
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    part = proto.graph
    for entries in (part.node, part.initializer, part.input, part.output, part.value_info):
        del entries[:]
    part.node.extend(reversed(chosen))
    part.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    held = {tensor.name for tensor in part.initializer}
    part.input.extend(value for value in graph.input if value.name in needed)
    for name in cuts:
        if name in needed and name not in made:
            part.input.append(onnx.helper.make_tensor_value_info(name, cuts[name], None))
    known = {value.name: value for value in graph.output}
    for name in outputs:
        part.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    fed = tuple(value.name for value in part.input if value.name not in held)
    return Block(Model(proto, model.base_dir), fed, outputs)
