"""Networks against onnxruntime and against finite differences."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from onnxdecomp.graph.io import load
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.network import Network
from tests.asserts import TOLERANCES, assert_close
from tests.graph.models import run

Arrays = Mapping[str, NDArray[np.generic]]

STEP = 1e-5
"""Distance of the two sides of a central difference, in float64."""

GRADIENT = 1e-7
"""Largest difference of a derivative from the central difference, relative to the derivative."""


def one_node(
    op_type: str, inputs: Arrays, *, opset: int = 18, outputs: int = 1, ir: int = 8, **attributes: Any
) -> onnx.ModelProto:
    """Return the model of one node; its inputs are those of the graph, in this order, None ones left out."""
    values = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
        if array is not None
    ]
    names = [f"y{n}" for n in range(outputs)]
    node = onnx.helper.make_node(
        op_type, [name if a is not None else "" for name, a in inputs.items()], names, **attributes
    )
    made = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
    graph = onnx.helper.make_graph([node], "one node", values, made)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir)


def evaluate(proto: onnx.ModelProto, feeds: Arrays) -> list[Any]:
    """Return the outputs of the network of a model as arrays; those that are sequences as lists."""
    network = Network(load(proto))
    with torch.no_grad():
        outputs = network({name: to_torch(np.asarray(array)) for name, array in feeds.items()})
    return [v.numpy() if isinstance(v, torch.Tensor) else [t.numpy() for t in v] for v in outputs.values()]


def assert_parity(
    proto: onnx.ModelProto, feeds: Arrays, tolerance: float = TOLERANCES["float32 output"]
) -> None:
    """Fail unless the network gives what onnxruntime gives, optimizations off."""
    fed = {name: array for name, array in feeds.items() if array is not None}
    expected = run(proto, fed)
    for got, wanted in zip(evaluate(proto, fed), expected, strict=True):
        assert_close(got, wanted, tolerance)


def assert_gradients(proto: onnx.ModelProto, feeds: Arrays, names: Collection[str] | None = None) -> None:
    """Fail unless derivatives along random directions equal central differences, in float64.

    Checked for every float64 parameter and input, or for those of `names`.
    """
    rng = np.random.default_rng(0)
    network = Network(load(proto))
    network.train_only(network.parameters)
    tensors = {name: to_torch(np.asarray(array)) for name, array in feeds.items()}
    leaves = {
        name: leaf
        for name, leaf in {**network.parameters, **tensors}.items()
        if leaf.is_floating_point() and (names is None or name in names)
    }
    assert leaves
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    weights: dict[str, torch.Tensor] = {}

    def loss() -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, output in network(tensors).items():
            if output.is_floating_point():
                weight = weights.setdefault(name, torch.from_numpy(rng.normal(size=output.shape)))
                total = total + (output * weight).sum()
        return total

    loss().backward()
    differences = {name: _difference(loss, leaf, rng) for name, leaf in leaves.items()}
    wrong = {
        name: (exact, measured)
        for name, (exact, measured, scale) in differences.items()
        if not abs(exact - measured) <= GRADIENT * scale
    }
    assert wrong == {}


def _difference(loss: Any, leaf: torch.Tensor, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a directional derivative, its central difference, and how large it could have been."""
    assert leaf.grad is not None, "no gradient arrived"
    assert float(leaf.grad.abs().max()) > 0, "the gradient is zero everywhere"
    direction = torch.from_numpy(rng.normal(size=leaf.shape))
    with torch.no_grad():
        leaf += STEP * direction
        above = float(loss())
        leaf -= 2 * STEP * direction
        below = float(loss())
        leaf += STEP * direction
    exact = float((leaf.grad * direction).sum())
    return exact, (above - below) / (2 * STEP), float((leaf.grad * direction).abs().sum()) + 1.0
