"""Which initializers of a model can be trained, and which of them are asked for.

Those of the main graph, and those in the bodies of If, Loop and Scan that a name is enough for: what shares
its name with another tensor, as in the two branches of an If, stays as it is. So do bodies in functions.
"""

from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np
import onnx

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.names import MARK, graphs_by_scope, named_initializers
from onnxdecomp.graph.walk import bodies, walk
from onnxdecomp.graph.weights import FLOAT_TYPES

_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
               "MatMulInteger", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")  # fmt: skip
"""Operators whose inputs or outputs are rounded to integers, so that no gradient passes."""

_STATISTICS = (3, 4)
"""Inputs of BatchNormalization that hold mean and variance of what was trained on."""


def check_floating(model: Model) -> None:
    """Refuse a model that is quantized already.

    Raises:
        ModelError: A node quantizes, or computes with integers in place of floats.
    """
    found = {place.node.op_type for place in walk(model.proto.graph)} & set(_QUANTIZERS)
    if found:
        raise ModelError(
            f"the model is quantized already ({', '.join(sorted(found))}), and no gradient passes rounding: "
            "fine-tune it before it is quantized"
        )


def trainable(model: Model) -> dict[str, onnx.TensorProto]:
    """Return the float initializers that an output depends on, by name.

    Those of the main graph come first. The statistics of BatchNormalization are not among them.
    """
    reached, frozen = set(_reached(model.proto.graph)), set(_statistics(model.proto))
    return {
        name: tensor
        for name, tensor in named_initializers(model.proto).items()
        if tensor.data_type in FLOAT_TYPES and name in reached and name not in frozen
    }


def all_of(model: Model) -> tuple[str, ...]:
    """Return the names of all trainable initializers but the scalars of the original graph.

    Scalars are part of a formula: bounds, an epsilon, a divisor. Those we wrote scale codebooks.

    Raises:
        ModelError: There is none.
    """
    names = tuple(n for n, tensor in trainable(model).items() if tensor.dims or MARK in n)
    if not names:
        raise ModelError(
            "no float initializer of the model reaches an output, so nothing can be trained: weights in "
            "Constant nodes, of integers, or in bodies under a name that is used twice stay as they are"
        )
    return names


def decomposed_of(model: Model, teacher: Model) -> tuple[str, ...]:
    """Return the names of the trainable initializers that the teacher does not hold with equal numbers.

    Raises:
        UsageError: There is none.
    """
    held = defaultdict(list)
    for graph in graphs_by_scope(teacher.proto).values():
        for theirs in graph.initializer:
            held[theirs.name].append(theirs)
    names = tuple(
        name
        for name, tensor in trainable(model).items()
        if not any(_same(model, tensor, teacher, theirs) for theirs in held[name])
    )
    if not names:
        raise UsageError(
            "the teacher holds every float initializer of the student with the same numbers, so nothing is "
            "decomposed: give the original as --teacher, or --train all"
        )
    return names


def matching(model: Model, pattern: str) -> tuple[str, ...]:
    """Return the names of the trainable initializers that a pattern matches; case counts.

    Raises:
        UsageError: There is none.
    """
    known = list(trainable(model))
    names = tuple(name for name in known if fnmatchcase(name, pattern))
    if not names:
        listed = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        raise UsageError(
            f"--train '{pattern}' matches none of the {len(known)} trainable initializers ({listed}): name "
            "some of them with * and ?, or say decomposed or all"
        )
    return names


def replaced_outputs(model: Model, teacher: Model) -> tuple[str, ...]:
    """Return the tensors that both main graphs compute by different nodes: what replaced layers put out.

    Outputs of the models are left out.
    """
    outputs = {value.name for value in model.proto.graph.output}
    theirs = _makers(teacher.proto)
    return tuple(
        name
        for name, node in _makers(model.proto).items()
        if name in theirs
        and name not in outputs
        and (node.op_type, *node.input) != (theirs[name].op_type, *theirs[name].input)
    )


def computed(model: Model) -> tuple[str, ...]:
    """Return the names of the tensors that nodes of the main graph put out."""
    return tuple(_makers(model.proto))


def has_half_floats(model: Model) -> bool:
    """Tell whether a model computes with floats of 16 bits, which no two runtimes do alike."""
    graph = model.proto.graph
    kinds = {tensor.data_type for tensor in named_initializers(model.proto).values()}
    kinds |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return bool(kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def _makers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in proto.graph.node for name in node.output if name}


def _reached(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the tensors that an output depends on, those inside of bodies included."""
    needed = {value.name for value in graph.output}
    yield from needed
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            read = [*node.input, *(name for body in bodies(node) for name in _reached(body))]
            needed.update(read)
            yield from read


def _statistics(proto: onnx.ModelProto) -> Iterator[str]:
    for place in walk(proto.graph):
        if place.node.op_type == "BatchNormalization" and place.node.domain in STANDARD_DOMAINS:
            yield from (place.node.input[index] for index in _STATISTICS if index < len(place.node.input))


def _same(model: Model, tensor: onnx.TensorProto, other: Model, theirs: onnx.TensorProto) -> bool:
    if tensor.data_type != theirs.data_type or list(tensor.dims) != list(theirs.dims):
        return False
    return bool(np.array_equal(_bits(model, tensor), _bits(other, theirs)))


def _bits(model: Model, tensor: onnx.TensorProto) -> np.ndarray:
    return np.ascontiguousarray(model.array(tensor)).reshape(-1).view(np.uint8)
