"""Which nodes onnxruntime's quantizer gets right and has a kernel in INT8 for, and why not the others.

Nodes are known by a number in their name: alone, or inside the name of the node they were fused into.
"""

import re
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from onnxdecomp.graph.sites import is_dense
from onnxdecomp.graph.walk import walk

_NUMBER = re.compile(r"<int8:(\d+)>")


def numbered_name(number: int) -> str:
    """Return the name of the node of that number."""
    return f"<int8:{number}>"


def number_in(name: str) -> int | None:
    """Return the number of the node that one of this name came from; None for a new one."""
    found = _NUMBER.search(name)
    return int(found[1]) if found else None


def with_names(name: str, names: Sequence[str]) -> str:
    """Return the name of a node with names in the place of numbers."""
    return _NUMBER.sub(lambda found: names[int(found[1])], name)


def initializers(proto: onnx.ModelProto) -> dict[str, TensorProto]:
    """Return the constants of the main graph that no caller can replace, by name."""
    inputs = {value.name for value in proto.graph.input}
    return {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name not in inputs}


def attribute(node: NodeProto, name: str, default: float) -> float:
    """Return a number that is an attribute of a node."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def sort_out(original: onnx.ModelProto, proto: onnx.ModelProto) -> tuple[dict[str, str], dict[str, str]]:
    """Return the nodes that can be quantized (key by name) and why the others cannot (reason by key)."""
    places = enumerate(walk(original.graph))
    dense = {n: p for n, p in places if is_dense(p.node.op_type, p.node.domain)}
    layers, kept = {}, {}
    judge = _Judge(proto)
    for node in proto.graph.node:
        number = number_in(node.name)
        if number in dense and is_dense(node.op_type, node.domain):
            key = dense.pop(number).key
            reason = judge.refusal(node)
            if reason:
                kept[key] = reason
            else:
                layers[node.name] = key
    for place in dense.values():
        kept[place.key] = (
            "it stands in the body of an If, Loop or Scan, which is not quantized"
            if place.scope
            else "onnxruntime folds it away"
        )
    return layers, kept


class _Judge:
    """Which nodes of a prepared model the quantizer gets right and onnxruntime has an INT8 kernel for."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._constants = initializers(proto)
        graph = proto.graph
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }

    def refusal(self, node: NodeProto) -> str | None:
        """Return why a Conv, ConvTranspose, Gemm or MatMul stays in float, or None."""
        if node.op_type == "ConvTranspose":
            return "onnxruntime has no INT8 kernel for ConvTranspose"
        weight = self._constants.get(node.input[1])
        if weight is None:
            left = node.input[0] in self._constants
            return "its weight is the left operand" if left else "its weight is not a constant"
        tensors = (weight.data_type, self._types.get(node.input[0]), self._types.get(node.output[0]))
        if any(kind not in (None, 0, TensorProto.FLOAT) for kind in tensors):
            return "it is not of type float32"
        if None in tensors or 0 in tensors:
            return "the type of its input or output is not known"
        if node.op_type != "Conv" and len(weight.dims) != 2:
            return f"its weight has {len(weight.dims)} axes"
        numbers = onnx.numpy_helper.to_array(weight)
        if not numbers.size or not np.all(np.isfinite(numbers)):
            return "its weight is empty, or has NaN or infinite values"
        return self._gemm_refusal(node, weight) if node.op_type == "Gemm" else self._bias_refusal(node, None)

    def _gemm_refusal(self, node: NodeProto, weight: TensorProto) -> str | None:
        if attribute(node, "transA", 0):
            return "its input is transposed"
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return "its alpha or beta is not 1"
        return self._bias_refusal(node, weight.dims[0 if attribute(node, "transB", 0) else 1])

    def _bias_refusal(self, node: NodeProto, n_outputs: int | None) -> str | None:
        if len(node.input) < 3 or not node.input[2]:
            return None
        bias = self._constants.get(node.input[2])
        if bias is None:
            return "its bias is not a constant"
        if len(bias.dims) != 1 or n_outputs not in (None, bias.dims[0]):
            return f"its bias has shape {list(bias.dims)}, not one number per output"
        finite = np.all(np.isfinite(onnx.numpy_helper.to_array(bias)))
        return None if finite else "its bias has NaN or infinite values"
