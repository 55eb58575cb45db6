"""Read one node as a layer in the normal form, or say why it is none that we replace.

    operator        stored weight        normal form
    Conv            (O, I/G, *K)         the same
    ConvTranspose   (I, O/G, *K)         channels exchanged inside each group
    Gemm            (I, O), or (O, I) with transB; times alpha
    MatMul          (I, O) as right operand, (O, I) as left one

Source: ONNX operators Conv, ConvTranspose, Gemm and MatMul, with the defaults of their attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import onnx_graphsurgeon as gs

from onnxdecomp.graph.fold import Tail
from onnxdecomp.graph.lens import STANDARD_DOMAINS, Lens, Place
from onnxdecomp.graph.shapes import StaticShapes, flattened_axes, layer_in_shape
from onnxdecomp.graph.weights import FLOAT_TYPES, Constant, Step, trace
from onnxdecomp.layer import Geometry, Layer, OpType

DENSE: tuple[OpType, ...] = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that we replace."""

_QUANTIZED = "it is already quantized"
_FUSED = "it was fused by onnxruntime: convert the model as it was before optimization"
_RELATIVES = {
    "": dict.fromkeys(("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"), _QUANTIZED),
    "com.microsoft": {
        **dict.fromkeys(("QGemm", "QLinearConv", "MatMulInteger16", "MatMulIntegerToFloat"), _QUANTIZED),
        **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), _QUANTIZED),
        **dict.fromkeys(("FusedConv", "FusedGemm", "FusedMatMul", "TransposeMatMul"), _FUSED),
    },
}


@dataclass(frozen=True, eq=False)
class Site:
    """A node that can be replaced, and how a replacement is connected.

    Args:
        layer: The node in the normal form.
        place: Where it stands.
        weight: Its weight, brought to the normal form but for `alpha`.
        alpha: Factor of the weight (Gemm).
        data: Name of its data input.
        bias: Its bias input (C of a Gemm), or None.
        beta: Factor of the bias (Gemm).
        trans_a: The data input of a Gemm is transposed.
        tail: Nodes behind it that can be folded into it, or None.
        bias_constant: The bias, when there is one and it is constant.
    """

    layer: Layer
    place: Place
    weight: Constant
    data: str
    bias: gs.Tensor | None = None
    alpha: float = 1.0
    beta: float = 1.0
    trans_a: bool = False
    tail: Tail | None = None
    bias_constant: Constant | None = None

    @property
    def output(self) -> str:
        """Name of the tensor that a replacement makes."""
        return self.tail.output if self.tail else str(self.place.proto.output[0])


def kind_refusal(op_type: str, domain: str) -> str | None:
    """Return why an operator related to ours is not replaced; None for ours and for foreign ones."""
    return _RELATIVES.get("" if domain in STANDARD_DOMAINS else domain, {}).get(op_type)


def is_dense(op_type: str, domain: str) -> bool:
    """Tell whether an operator is one that we replace."""
    return domain in STANDARD_DOMAINS and op_type in DENSE


def read_site(
    lens: Lens, place: Place, shapes: StaticShapes, observed: Mapping[str, tuple[int, ...]]
) -> Site | str:
    """Return the site of a node for which `is_dense` holds, or a sentence why it cannot be replaced."""
    inputs = [tensor for tensor in place.node.inputs if not tensor.is_empty()]
    if len(inputs) < 2 or not place.proto.output:
        return "it has fewer inputs or outputs than its operator needs"
    op_type = cast(OpType, place.proto.op_type)
    side = _weight_side(lens, place)
    if isinstance(side, str):
        return side
    index, weight = side
    if weight.data_type not in FLOAT_TYPES:
        return "its weight is not of a float type (32, 64 or 16 bits, or bfloat16)"
    if 0 in weight.shape:
        return f"its weight of shape {list(weight.shape)} is empty"
    match op_type:
        case "Conv" | "ConvTranspose":
            form = _convolution(op_type, weight, place.node.attrs)
        case "Gemm":
            form = _gemm(lens, weight, place.node.attrs)
        case _:
            form = _matmul(weight, left=index == 0)
    if isinstance(form, str):
        return form
    geometry, steps = form
    normal = weight.then(*steps)
    data = place.node.inputs[1 - index]
    on_left, trans_a = index == 0, op_type == "Gemm" and bool(place.node.attrs.get("transA", 0))
    static = shapes.of(data.name, place.scope)
    in_shape = layer_in_shape(op_type, static, observed, place.key, transposed=on_left or trans_a)
    is_row = not (geometry.n_axes or on_left or trans_a)
    flattened = flattened_axes(data, shapes, place.scope, normal.shape[1]) if is_row else ()
    layer = Layer(place.key, op_type, normal.shape, geometry, in_shape, on_left, flattened)
    bias = place.node.inputs[2] if op_type != "MatMul" and len(place.node.inputs) > 2 else None
    if bias is not None and bias.is_empty():
        bias = None
    if op_type != "Gemm":
        return Site(layer, place, normal, data.name, bias)
    alpha, beta = (float(place.node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    return Site(layer, place, normal, data.name, bias, alpha, beta, trans_a)


def _weight_side(lens: Lens, place: Place) -> tuple[int, Constant] | str:
    """Return which input is the weight, and the weight."""
    right = trace(lens, place.node.inputs[1], place.scope)
    if not isinstance(right, str):
        return 1, right
    if place.proto.op_type in ("Conv", "ConvTranspose"):
        return right
    left = trace(lens, place.node.inputs[0], place.scope)
    if isinstance(left, str):
        # the reason that says more: a quantized weight rather than "an input of its graph"
        return left if "quantized" in left and "quantized" not in right else right
    if place.proto.op_type == "Gemm":
        return "its constant is the left operand of a Gemm"
    return 0, left


def _convolution(
    op_type: str, weight: Constant, attributes: Mapping[str, Any]
) -> tuple[Geometry, tuple[Step, ...]] | str:
    n_axes, group = len(weight.shape) - 2, int(attributes.get("group", 1))
    transposed = op_type == "ConvTranspose"
    if n_axes < 1 or group < 1 or weight.shape[0] % group:
        return f"its weight of shape {list(weight.shape)} does not fit {group} groups"
    kernel = weight.shape[2:]
    if tuple(attributes.get("kernel_shape", kernel)) != kernel:
        return f"its kernel_shape differs from its weight of shape {list(weight.shape)}"
    if attributes.get("output_shape"):
        return "its output_shape is given instead of pads"
    ones, zeros = (1,) * n_axes, (0,) * n_axes
    pads = tuple(attributes.get("pads", zeros * 2))
    geometry = Geometry(
        strides=tuple(attributes.get("strides", ones)),
        pads_begin=pads[:n_axes],
        pads_end=pads[n_axes:],
        dilations=tuple(attributes.get("dilations", ones)),
        group=group,
        transposed=transposed,
        output_padding=tuple(attributes.get("output_padding", zeros)) if transposed else zeros,
    )
    if any(len(v) != n_axes for v in (geometry.strides, geometry.dilations, geometry.pads_end)):
        return "its strides, pads or dilations do not fit the axes of its weight"
    geometry = _resolve_auto_pad(geometry, kernel, attributes.get("auto_pad", "NOTSET"))
    if not transposed:
        return geometry, ()
    rows, columns = weight.shape[:2]
    return geometry, (
        ("reshape", (group, rows // group, columns, *kernel)),
        ("transpose", (0, 2, 1, *range(3, 3 + n_axes))),
        ("reshape", (group * columns, rows // group, *kernel)),
    )


def _resolve_auto_pad(
    geometry: Geometry,
    kernel: tuple[int, ...],
    auto_pad: Literal["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"],
) -> Geometry:
    """Return the geometry with `auto_pad` applied.

    A convolution keeps SAME_*, whose pads depend on the input's size. Those of a transposed one do not:
    the output of n samples is cut from ``(n - 1) stride + span + output_padding`` to ``n stride``.
    """
    zeros = (0,) * geometry.n_axes
    if auto_pad == "NOTSET":
        return geometry
    if auto_pad == "VALID":
        return replace(geometry, pads_begin=zeros, pads_end=zeros)
    if not geometry.transposed:
        return replace(geometry, pads_begin=zeros, pads_end=zeros, auto_pad=auto_pad)
    totals = [
        max(0, (k - 1) * dilation + 1 + extra - stride)
        for k, dilation, extra, stride in zip(
            kernel, geometry.dilations, geometry.output_padding, geometry.strides, strict=True
        )
    ]
    less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    if auto_pad == "SAME_UPPER":
        return replace(geometry, pads_begin=less, pads_end=more)
    return replace(geometry, pads_begin=more, pads_end=less)


def _gemm(
    lens: Lens, weight: Constant, attributes: Mapping[str, Any]
) -> tuple[Geometry, tuple[Step, ...]] | str:
    if lens.opset < 7:
        return (
            f"its operator set {lens.opset} broadcasts in a way of its own: convert the model to 7 or later"
        )
    if len(weight.shape) != 2:
        return f"its weight of shape {list(weight.shape)} is no matrix"
    return Geometry(), () if attributes.get("transB", 0) else (("transpose", (1, 0)),)


def _matmul(weight: Constant, *, left: bool) -> tuple[Geometry, tuple[Step, ...]] | str:
    if len(weight.shape) != 2:
        return f"its constant of shape {list(weight.shape)} is no matrix"
    return Geometry(), () if left else (("transpose", (1, 0)),)
