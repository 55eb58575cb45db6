"""Write chains as ONNX nodes, and a layer or a chain alone as a small model.

One step becomes one node. Weights go from the normal form ``(O, I/G, *K)`` to the operator's own layout:

    Conv            (O, I/G, *K)        Gemm            (O, I) with transB = 1
    ConvTranspose   (I, O/G, *K)        MatMul          (I, O), or (O, I) as the left operand
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxdecomp.layer import Layer, StepSpec

MICRO_OPSET = 17
"""Opset of the small models: new enough for every operator here, old enough for every onnxruntime."""


@dataclass(frozen=True)
class Wiring:
    """The tensors a chain is connected to, by name.

    Args:
        source: Data input of the first step.
        target: Output of the last step.
        weights: Weight of each step.
        bias: Bias of the last step (input C of a Gemm), or None.
        node_name: Prefix of the names of nodes and inner tensors.
        trans_a: A Gemm whose data input is transposed: the first step then transposes it.
        beta: Factor of a Gemm's input C.
    """

    source: str
    target: str
    weights: tuple[str, ...]
    bias: str | None = None
    node_name: str = "layer"
    trans_a: bool = False
    beta: float = 1.0


def chain_nodes(layer: Layer, specs: Sequence[StepSpec], wiring: Wiring) -> list[onnx.NodeProto]:
    """Return one node per step: ``source -> step 0 -> ... -> target``, the bias on the last.

    A chain of one step writes the layer itself.
    """
    last = len(specs) - 1
    nodes = []
    source = wiring.source
    for index, (spec, weight) in enumerate(zip(specs, wiring.weights, strict=True)):
        target = wiring.target if index == last else f"{wiring.node_name}/onnxdecomp/{index}"
        inputs = [weight, source] if layer.weight_on_left else [source, weight]
        if index == last and wiring.bias:
            inputs.append(wiring.bias)
        node = gs.Node(
            op=_operator(layer, spec),
            name=f"{wiring.node_name}/onnxdecomp/step{index}",
            attrs=_attributes(layer, spec, wiring, first=index == 0, last=index == last),
            inputs=[gs.Variable(name) for name in inputs],
            outputs=[gs.Variable(target)],
        )
        nodes.append(OnnxExporter.export_node(node))
        source = target
    return nodes


def stored_weight(layer: Layer, spec: StepSpec, weight: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return a step's weight ``(O, I/G, *K)`` in its operator's layout, as a view."""
    match _operator(layer, spec):
        case "ConvTranspose":
            return swap_group_channels(weight, spec.geometry.group)
        case "MatMul" if not layer.weight_on_left:
            return weight.T
    return weight


def swap_group_channels(weight: NDArray[np.floating], group: int) -> NDArray[np.floating]:
    """Exchange the two channel axes inside each group: ``(G A, B, *K) -> (G B, A, *K)``; its own inverse."""
    rows, columns = weight.shape[:2]
    blocks = weight.reshape(group, rows // group, columns, *weight.shape[2:])
    return blocks.swapaxes(1, 2).reshape(group * columns, rows // group, *weight.shape[2:])


def layer_model(
    layer: Layer,
    specs: Sequence[StepSpec],
    weights: Sequence[NDArray[np.floating]],
    bias: NDArray[np.floating] | None = None,
    dtype: np.dtype | type = np.float32,
    in_shape: tuple[int, ...] | None = None,
) -> onnx.ModelProto:
    """Return a model of one input ``x``, one chain and one output ``y``.

    Args:
        layer: The layer the chain stands for.
        specs: Steps of the chain; ``(layer.spec,)`` for the layer itself.
        weights: Arrays ``(O, I/G, *K)``, one per step.
        bias: ``(O,)`` or None.
        dtype: Element type of the model.
        in_shape: ``(N, *spatial)``; the layer's own when None.

    Raises:
        ValueError: Neither the layer nor the caller knows the input's shape.
    """
    in_shape = in_shape or layer.in_shape
    if in_shape is None:
        raise ValueError(f"{layer.key}: the shape of the input is unknown")
    names = tuple(f"w{index}" for index in range(len(specs)))
    wiring = Wiring("x", "y", names, "b" if bias is not None else None)
    initializers = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(stored_weight(layer, s, w), dtype), name)
        for s, w, name in zip(specs, weights, names, strict=True)
    ]
    if bias is not None:
        initializers.append(onnx.numpy_helper.from_array(np.asarray(bias, dtype), "b"))
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.helper.make_graph(
        chain_nodes(layer, specs, wiring),
        "layer",
        [onnx.helper.make_tensor_value_info("x", element, data_shape(layer, in_shape))],
        [onnx.helper.make_tensor_value_info("y", element, None)],
        initializers,
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", MICRO_OPSET)], ir_version=8
    )


def data_shape(layer: Layer, in_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the layer's data input for ``(N, *spatial)``."""
    if layer.weight_on_left:
        return (layer.in_channels, in_shape[0])
    return (in_shape[0], layer.in_channels, *in_shape[1:])


def _operator(layer: Layer, spec: StepSpec) -> str:
    if layer.op_type in ("Gemm", "MatMul"):
        return layer.op_type
    return "ConvTranspose" if spec.geometry.transposed else "Conv"


def _attributes(
    layer: Layer, spec: StepSpec, wiring: Wiring, *, first: bool, last: bool
) -> dict[str, object]:
    if layer.op_type == "MatMul":
        return {}
    if layer.op_type == "Gemm":
        attributes: dict[str, object] = {"transB": 1}
        if first and wiring.trans_a:
            attributes["transA"] = 1
        if last and wiring.bias and wiring.beta != 1.0:
            attributes["beta"] = wiring.beta
        return attributes
    geometry = spec.geometry
    attributes = {
        "kernel_shape": list(spec.weight_shape[2:]),
        "strides": list(geometry.strides),
        "dilations": list(geometry.dilations),
        "group": geometry.group,
    }
    if geometry.auto_pad != "NOTSET":
        attributes["auto_pad"] = geometry.auto_pad
    else:
        attributes["pads"] = [*geometry.pads_begin, *geometry.pads_end]
    if geometry.transposed and any(geometry.output_padding):
        attributes["output_padding"] = list(geometry.output_padding)
    return attributes
