"""Input channels of zero weight, with which onnxruntime runs a convolution in INT8 by its faster kernel.

That kernel takes channels four at a time. With others, such as the three of an image, patches are copied into
a matrix first, which may take longer than the products.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array, to_array

from onnxdecomp.graph.names import fresh, remove, used_names
from onnxdecomp.runtime.int8.layers import attribute, initializers

CHANNEL_BLOCK = 4
"""Input channels that the kernel takes at once, on x86 and on ARM."""


def pad_channels(proto: onnx.ModelProto) -> set[str]:
    """Give the convolutions in INT8 inputs of whole blocks of channels, in place. The outputs stay the same.

    Channels are added behind QuantizeLinear. What they hold does not matter: the weight has zeros for them.

    Args:
        proto: A model in the QDQ format. Its new nodes stand before those that use them.

    Returns:
        The names of these convolutions.
    """
    graph, padding = proto.graph, _Padding(proto)
    nodes: list[NodeProto] = []
    padded = set()
    for node in graph.node:
        weight = padding.narrow_weight(node)
        if weight is not None:
            nodes += padding.widened(node, weight)
            padded.add(node.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph, padding.replaced)
    return padded


def lacks_channels(proto: onnx.ModelProto) -> bool:
    """Tell whether `pad_channels` would pad anything."""
    padding = _Padding(proto)
    return any(padding.narrow_weight(node) is not None for node in proto.graph.node)


class _Padding:
    """Makes wider inputs for the convolutions of a model.

    Attributes:
        replaced: The tensors that something wider took the place of, and what they came from.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._constants = initializers(proto)
        self._dequantized = {n.output[0]: n for n in proto.graph.node if n.op_type == "DequantizeLinear"}
        self._taken = {*used_names(proto.graph), *self._constants}
        self._taken |= {name for n in proto.graph.node for name in (n.name, *n.output)}
        self.replaced: set[str] = set()

    def narrow_weight(self, node: NodeProto) -> TensorProto | None:
        """Return the weight ``(O, I, *K)`` of a convolution in INT8, without groups, that lacks channels."""
        if node.op_type != "Conv" or not self._dequantized.keys() >= set(node.input[:2]):
            return None
        weight = self._constants.get(self._dequantized[node.input[1]].input[0])
        is_narrow = weight is not None and weight.dims[1] % CHANNEL_BLOCK > 0
        return weight if is_narrow and attribute(node, "group", 1) == 1 else None

    def widened(self, node: NodeProto, weight: TensorProto) -> list[NodeProto]:
        """Give a convolution wider inputs, and return the nodes that make them."""
        widths = np.zeros((len(weight.dims), 2), np.int64)  # before and behind, by axis
        widths[1, 1] = -weight.dims[1] % CHANNEL_BLOCK
        data, kernel = (self._dequantized[name] for name in node.input[:2])
        pads = self._store(f"{data.input[0]}_pads", widths.T.ravel())
        zeros = self._store(f"{weight.name}_padded", np.pad(to_array(weight), widths))
        name = fresh(f"{data.input[0]}_padded", self._taken)
        pad = make_node("Pad", [data.input[0], pads], [name], name)
        sources = [self._of(data, name), self._of(kernel, zeros)]
        for number, source in enumerate(sources):
            node.input[number] = source.output[0]
        return [pad, *sources]

    def _of(self, dequantizer: NodeProto, quantized: str) -> NodeProto:
        """Return a node like `dequantizer` for another input."""
        self.replaced |= {dequantizer.input[0], dequantizer.output[0]}
        node = NodeProto()
        node.CopyFrom(dequantizer)
        node.input[0] = quantized
        node.name = node.output[0] = fresh(f"{dequantizer.output[0]}_padded", self._taken)
        return node

    def _store(self, name: str, array: NDArray[np.integer]) -> str:
        self._graph.initializer.append(from_array(array, fresh(name, self._taken)))
        return self._graph.initializer[-1].name


def _drop_unused(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the DequantizeLinear and the constants among `names` that nothing uses any more."""
    unused = names.difference(used_names(graph))
    for index in range(len(graph.node) - 1, -1, -1):
        if graph.node[index].output[0] in unused:
            del graph.node[index]
    remove(graph.initializer, names.difference(used_names(graph)))
