"""Build the ONNX form of a public CIFAR-10 network from its Keras .h5 file.

Six Conv 3x3 without padding, each followed by ReLU and then BatchNormalization (which therefore cannot be
folded into the convolution before it), three poolings, and Gemm 64 -> 1024 -> 512 -> 10. A ReLU stands
behind the last Gemm too, as in the original.

    input   image   float32 (N, 3, 32, 32), raw pixel values 0..255, RGB
    output  scores  float32 (N, 10)

Keras keeps images as (N, H, W, C) and flattens them so; ONNX convolutions take (N, C, H, W). The kernels
are transposed here, and a Transpose before Flatten restores the order the first Gemm was trained with.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 17


def build(path: Path) -> onnx.ModelProto:
    """Return the model of a Keras Sequential .h5 made of Conv2D, BatchNormalization, MaxPooling2D and Dense.

    Raises:
        ValueError: The file holds another kind of layer or activation.
        ModuleNotFoundError: h5py is missing; it comes with the extra ``dev``.
    """
    import h5py

    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        graph = _Graph(file["model_weights"])
        for layer in layers:
            graph.add(layer["class_name"], layer["config"])
    return graph.finish()


class _Graph:
    """Nodes and weights so far; `tensor` is the output of the last node."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.tensor = "image"

    def add(self, kind: str, config: dict[str, Any]) -> None:
        name = config["name"]
        match kind:
            case "InputLayer" | "Dropout":
                return
            case "Conv2D":
                _require(config["padding"] == "valid", "only valid padding is expected")
                kernel = self._weight(name, "kernel").transpose(3, 2, 0, 1)  # (O, I, kh, kw)
                inputs = [self._store(f"{name}.weight", kernel), self._bias(name)]
                self._node("Conv", name, inputs, kernel_shape=kernel.shape[2:], strides=config["strides"])
            case "Dense":
                kernel = self._weight(name, "kernel").T  # (O, I)
                self._node("Gemm", name, [self._store(f"{name}.weight", kernel), self._bias(name)], transB=1)
            case "BatchNormalization":
                parts = ("gamma", "beta", "moving_mean", "moving_variance")
                inputs = [self._store(f"{name}.{part}", self._weight(name, part)) for part in parts]
                self._node("BatchNormalization", name, inputs, epsilon=config["epsilon"])
            case "MaxPooling2D":
                self._node("MaxPool", name, [], kernel_shape=config["pool_size"], strides=config["strides"])
            case "Flatten":
                self._node("Transpose", f"{name}_order", [], perm=(0, 2, 3, 1))
                self._node("Flatten", name, [], axis=1)
            case _:
                raise ValueError(f"{kind} is not expected in this network")
        activation = config.get("activation", "linear")
        _require(activation in ("linear", "relu"), f"activation {activation} is not expected")
        if activation == "relu":
            self._node("Relu", f"{name}_relu", [])

    def finish(self) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "scores"
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "cifar10_keras",
            [helper.make_tensor_value_info("image", float32, ["N", 3, 32, 32])],
            [helper.make_tensor_value_info("scores", float32, ["N", 10])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _weight(self, layer: str, part: str) -> NDArray[np.float32]:
        return np.asarray(self.weights[f"{layer}/{layer}/{part}:0"])

    def _bias(self, layer: str) -> str:
        return self._store(f"{layer}.bias", self._weight(layer, "bias"))

    def _store(self, name: str, array: NDArray[np.float32]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, op_type: str, name: str, inputs: list[str], **attributes: Any) -> None:
        self.nodes.append(
            helper.make_node(op_type, [self.tensor, *inputs], [f"{name}_out"], name, **attributes)
        )
        self.tensor = f"{name}_out"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
