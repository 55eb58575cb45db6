"""What to compare of a model that puts out as many rows as it finds, as a detector does that ends in NMS.

Such outputs have no row for each sample, and one box more or less shifts all that follow. What is counted has
both: the boxes and scores that a NonMaxSuppression chooses from. The best so many, as a detector without NMS
puts them out, change places in the same way.
"""

from collections.abc import Iterable, Mapping

import onnx

from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.names import reads
from onnxdecomp.graph.sites import is_dense
from onnxdecomp.runtime.outputs import made_of, open_outputs, varying
from onnxdecomp.runtime.session import Model, read_proto

COUNTING = ("NonMaxSuppression", "NonZero", "Compress", "Unique")
"""Operators whose outputs have as many rows as the values they read make."""

SORTING = "TopK"
"""The one whose outputs change places. What layers make of these is compared as it comes."""

GATHERING = ("Gather", "GatherElements", "GatherND")
"""Operators that choose rows of what they read first."""


def what_is_counted(model: Model) -> dict[str, list[str]]:
    """Return the tensors that are counted in outputs which depend on counts, by name of the output.

    They are those of floating point that the operators in `COUNTING` read, or a `SORTING` one that no layer
    stands behind, and what else is gathered by what these find; or of which is made what these read. Of
    operators behind one another only the first is looked at.

    Args:
        model: The model or its path.

    Raises:
        ModelError: onnxruntime cannot load the part of the model that makes such a tensor.
    """
    graph = read_proto(model).graph
    depends = varying(graph)
    dense = (node for node in graph.node if is_dense(node.op_type, node.domain))
    before_layers = made_of(graph, (name for node in dense for name in reads(node) if name))
    counted: dict[str, dict[str, None]] = {}  # by tensor, what is counted in it
    for node in graph.node:
        inputs = [name for name in reads(node) if name in depends]
        found = dict.fromkeys(source for name in inputs for source in counted.get(name, ()))
        is_sorting = node.op_type == SORTING and before_layers.isdisjoint(node.output)
        is_counting = (node.op_type in COUNTING or is_sorting) and node.domain in STANDARD_DOMAINS
        if is_counting and counted.keys().isdisjoint(inputs):
            found |= dict.fromkeys(inputs)
        elif found and node.op_type in GATHERING and found.keys().isdisjoint(made_of(graph, node.input[:1])):
            found |= dict.fromkeys(name for name in node.input[:1] if name in depends)
        if found:
            counted.update((name, found) for name in node.output if name)
    floats = _Floats(model, graph, depends)
    outputs = [output.name for output in graph.output]
    return {name: floats.of(counted[name]) for name in outputs if name in counted}


class _Floats:
    """The nearest tensors of floating point that tensors are made of."""

    def __init__(self, model: Model, graph: onnx.GraphProto, depends: set[str]) -> None:
        self._model, self._depends = model, depends
        self._producers: Mapping[str, onnx.NodeProto] = {
            name: node for node in graph.node for name in node.output if name
        }

    def of(self, names: Iterable[str]) -> list[str]:
        """Return those of some tensors, each once."""
        found: dict[str, None] = {}
        pending, seen = list(names), set[str]()
        while pending:
            name = pending.pop(0)
            if name in seen or name not in self._producers:
                continue
            seen.add(name)
            if self._is_float(name):
                found[name] = None
            else:
                pending += [read for read in reads(self._producers[name]) if read in self._depends]
        return list(found)

    def _is_float(self, name: str) -> bool:
        (output,) = open_outputs(self._model, [name]).get_outputs()
        return output.type in ("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)")
