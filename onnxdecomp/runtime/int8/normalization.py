"""BatchNormalization as a depthwise convolution with a kernel of one sample, which onnxruntime runs in INT8.

Behind a convolution it is folded into that. Behind a ReLU, or in networks that normalize first, it stands
alone, and in float: what comes in INT8 would be brought to float for it and back.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array, to_array

from onnxdecomp.graph.fold import DEFAULT_EPSILON, normalization
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.names import fresh, used_names
from onnxdecomp.runtime.int8.layers import attribute, initializers


def normalizations(proto: onnx.ModelProto) -> dict[str, int]:
    """Return by node name the spatial axes of each BatchNormalization that can be such a convolution.

    Its statistics are constants, what it computes is finite, it does not train, and its input is known to
    have a spatial axis at least.

    Args:
        proto: A model with inferred shapes.
    """
    constants = initializers(proto)
    values = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    shapes = {v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and node.domain in STANDARD_DOMAINS:
            n_axes = len(shapes[node.input[0]].dim) - 2 if node.input[0] in shapes else 0
            if n_axes > 0 and _is_fixed(node, constants):
                found[node.name] = n_axes
    return found


def to_convolutions(proto: onnx.ModelProto, n_axes: Mapping[str, int]) -> None:
    """Rewrite normalizations in place; the convolutions keep their names.

    Args:
        proto: The model.
        n_axes: The nodes, as `normalizations` returns them.
    """
    constants = initializers(proto)
    taken = {*used_names(proto.graph), *constants}
    for node in proto.graph.node:
        if node.name in n_axes:
            factor, shift = _affine(node, constants)
            kernel = factor.reshape(-1, 1, *[1] * n_axes[node.name])  # (C, 1, 1 ...)
            names = [fresh(f"{node.output[0]}_{label}", taken) for label in ("factor", "shift")]
            for name, array in zip(names, (kernel, shift), strict=True):
                proto.graph.initializer.append(from_array(array, name))
            node.CopyFrom(
                make_node("Conv", [node.input[0], *names], node.output[:1], node.name, group=len(kernel))
            )


def _is_fixed(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    tensors = [constants.get(name) for name in node.input[1:5]]
    known = all(tensor is not None and tensor.data_type == TensorProto.FLOAT for tensor in tensors)
    if not known or attribute(node, "training_mode", 0) or any(node.output[1:]):
        return False
    return bool(np.all(np.isfinite(_affine(node, constants))))


def _affine(
    node: NodeProto, constants: Mapping[str, TensorProto]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a normalization multiplies channels by, and adds then, ``(C,)`` each."""
    values = (to_array(constants[name]) for name in node.input[1:5])
    with np.errstate(all="ignore"):
        found = normalization(*values, epsilon=attribute(node, "epsilon", DEFAULT_EPSILON))
        factor, shift = (np.asarray(array, np.float32) for array in found)
    return factor, shift
