"""Nodes in the making that compute a constant, with the constants they start from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

_SLICE_BY_INPUTS_OPSET = 10

Store = Callable[[str, NDArray[np.generic]], onnx.TensorProto]


@dataclass
class Draft:
    """Collects nodes; every method that adds one returns the name of its output.

    Args:
        prefix: Start of the names of constants.
        inner_prefix: Start of the names of what is computed, short because there are many.
        opset: Version of the operators.
        store: Stores an array under a name.
        share: Stores an array once for the whole model and returns its name.
        nodes: The nodes, in order.
        tensors: The constants of their own, in order.
    """

    prefix: str
    inner_prefix: str
    opset: int
    store: Store
    share: Callable[[str, NDArray[np.generic]], str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        output = f"{self.inner_prefix}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(
        self, label: str, array: NDArray[np.generic], packed: tuple[int, tuple[int, ...]] | None = None
    ) -> str:
        """Store an array under a name of this draft.

        Args:
            label: Last part of the name; a number is put behind it when it is taken.
            array: The elements.
            packed: Element type and shape, when several elements share a byte of `array`.
        """
        taken = {tensor.name for tensor in self.tensors}
        name, number = f"{self.prefix}{label}", 1
        while name in taken:
            number += 1
            name = f"{self.prefix}{label}{number}"
        tensor = self.store(name, array)
        if packed:
            tensor.data_type = packed[0]
            tensor.dims[:] = packed[1]
        self.tensors.append(tensor)
        return name

    def shared(self, label: str, array: NDArray[np.generic]) -> str:
        """Store an array that is the same wherever the label is used."""
        return self.share(label, array)

    def cast(self, value: str, data_type: int) -> str:
        """Add a Cast."""
        return self.node("Cast", value, to=data_type)

    def reshape(self, value: str, shape: tuple[int, ...]) -> str:
        """Add a Reshape."""
        if len(shape) == 1:
            return self.flatten(value)
        label = "shape" + "x".join(map(str, shape))
        return self.node("Reshape", value, self.shared(label, np.array(shape, np.int64)))

    def flatten(self, value: str) -> str:
        """Add a Reshape to one axis."""
        return self.node("Reshape", value, self.shared("flat", np.array([-1], np.int64)))

    def head(self, value: str, n_values: int) -> str:
        """Add a Slice that keeps the first elements of one axis."""
        if self.opset < _SLICE_BY_INPUTS_OPSET:
            return self.node("Slice", value, starts=[0], ends=[n_values])
        start = self.shared("start", np.array([0], np.int64))
        return self.node(
            "Slice", value, start, self.shared(f"size{n_values}", np.array([n_values], np.int64))
        )
