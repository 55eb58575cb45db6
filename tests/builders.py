"""Small layers, weights and inputs that tests are made of."""

from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.graph.emit import data_shape, layer_model
from onnxdecomp.layer import Geometry, Layer, OpType

Array = NDArray[np.floating]


def conv_layer(
    weight_shape: tuple[int, ...],
    in_shape: tuple[int, ...],
    *,
    group: int = 1,
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    auto_pad: str = "NOTSET",
    output_padding: tuple[int, ...] | None = None,
) -> Layer:
    """Return a convolution; a transposed one when `output_padding` is given.

    Args:
        weight_shape: ``(O, I/G, *K)``.
        in_shape: ``(N, *spatial)``.
        group: Number of groups.
        strides: One per axis; ones when left out.
        pads: As ONNX has them, all begins and then all ends; zeros when left out.
        dilations: One per axis; ones when left out.
        auto_pad: ``NOTSET``, ``SAME_UPPER`` or ``SAME_LOWER``.
        output_padding: One per axis, or ``()`` for zeros.
    """
    n_axes = len(weight_shape) - 2
    ones, zeros = (1,) * n_axes, (0,) * n_axes
    geometry = Geometry(
        strides or ones,
        pads[:n_axes] or zeros,
        pads[n_axes:] or zeros,
        dilations or ones,
        group,
        auto_pad,  # type: ignore[arg-type]
        transposed=output_padding is not None,
        output_padding=output_padding or zeros,
    )
    op_type: OpType = "ConvTranspose" if geometry.transposed else "Conv"
    return Layer("y", op_type, weight_shape, geometry, in_shape)


def matrix_layer(
    op_type: OpType, out_channels: int, in_channels: int, *, rows: int = 3, weight_on_left: bool = False
) -> Layer:
    """Return a Gemm or MatMul."""
    return Layer("y", op_type, (out_channels, in_channels), Geometry(), (rows,), weight_on_left)


def weight_of(layer: Layer, seed: int = 0) -> Array:
    """Return a float64 weight ``(O, I/G, *K)`` of norm about one for each output, without any symmetry."""
    fan_in = prod(layer.weight_shape[1:])
    return np.random.default_rng(seed).standard_normal(layer.weight_shape) / np.sqrt(fan_in)


def bias_of(layer: Layer, seed: int = 1) -> Array | None:
    """Return a bias ``(O,)`` large enough to be noticed, None for a MatMul, which has none."""
    if layer.op_type == "MatMul":
        return None
    return np.random.default_rng(seed).standard_normal(layer.out_channels) + 2.0


def input_of(layer: Layer, seed: int = 2) -> NDArray[np.float32]:
    """Return an input of the layer's own shape."""
    assert layer.in_shape is not None
    shape = data_shape(layer, layer.in_shape)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def dense_model(layer: Layer, weight: Array, bias: Array | None = None) -> onnx.ModelProto:
    """Return the model of the layer itself: input ``x``, output ``y``."""
    return layer_model(layer, (layer.spec,), (weight,), bias)


CONVOLUTIONS = {
    "plain": conv_layer((6, 4, 3, 3), (2, 7, 8), pads=(1, 1, 1, 1)),
    "valid": conv_layer((5, 4, 3, 3), (1, 7, 6)),
    "stride": conv_layer((6, 4, 3, 3), (1, 9, 8), strides=(2, 3), pads=(1, 1, 1, 1)),
    "asymmetric pads": conv_layer((4, 3, 3, 5), (1, 6, 7), pads=(0, 3, 2, 1), strides=(2, 1)),
    "same upper": conv_layer((4, 4, 3, 4), (1, 8, 9), auto_pad="SAME_UPPER", strides=(2, 3)),
    "same lower": conv_layer((4, 4, 4, 3), (1, 9, 8), auto_pad="SAME_LOWER", strides=(3, 2)),
    "dilation": conv_layer((4, 3, 3, 2), (1, 9, 9), dilations=(2, 3), pads=(2, 1, 1, 2)),
    "groups": conv_layer((6, 2, 3, 3), (1, 6, 6), group=3, pads=(1, 0, 0, 1), strides=(1, 2)),
    "depthwise": conv_layer((4, 1, 3, 5), (1, 7, 8), group=4, pads=(1, 2, 1, 2), strides=(2, 1)),
    "depthwise with a multiplier": conv_layer((6, 1, 3, 3), (1, 6, 6), group=3, pads=(1, 1, 0, 0)),
    "one input channel": conv_layer((6, 1, 3, 3), (1, 6, 6)),
    "one output channel": conv_layer((1, 4, 3, 3), (1, 6, 6)),
    "more inputs than the rest can fill": conv_layer((2, 9, 2, 2), (1, 5, 5)),
    "a row": conv_layer((5, 4, 1, 5), (1, 4, 9), pads=(0, 2, 0, 1), strides=(1, 2)),
    "a column": conv_layer((5, 4, 3, 1), (1, 9, 4), pads=(1, 0, 1, 0), strides=(2, 1)),
    "1x1": conv_layer((6, 5, 1, 1), (2, 4, 5)),
    "1x1 strided and padded": conv_layer((6, 5, 1, 1), (1, 5, 6), strides=(2, 3), pads=(1, 0, 2, 1)),
    "1x1 groups": conv_layer((8, 3, 1, 1), (1, 4, 5), group=2, strides=(2, 1)),
    "1-D": conv_layer((6, 4, 5), (2, 11), strides=(2,), pads=(2, 1), dilations=(2,)),
    "1-D 1": conv_layer((6, 4, 1), (2, 7), strides=(2,)),
    "3-D": conv_layer((4, 3, 3, 2, 2), (1, 5, 5, 4), pads=(1, 0, 1, 0, 1, 0), strides=(2, 1, 1)),
    "3-D groups": conv_layer((4, 2, 2, 3, 2), (1, 4, 5, 4), group=2, dilations=(1, 1, 2)),
    "transposed": conv_layer((5, 4, 3, 3), (1, 4, 5), output_padding=()),
    "transposed strided": conv_layer(
        (4, 3, 3, 4), (1, 4, 3), strides=(2, 3), pads=(1, 2, 0, 1), output_padding=(1, 2)
    ),
    "transposed dilated groups": conv_layer(
        (6, 2, 2, 3), (1, 4, 4), group=3, strides=(2, 1), dilations=(1, 2), output_padding=(1, 0)
    ),
    "transposed depthwise": conv_layer(
        (4, 1, 3, 3), (1, 4, 4), group=4, strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)
    ),
    "transposed 1x1 strided": conv_layer(
        (6, 5, 1, 1), (1, 3, 4), strides=(2, 3), pads=(0, 1, 1, 0), output_padding=(1, 2)
    ),
    "transposed 1-D": conv_layer((4, 3, 4), (2, 5), strides=(3,), pads=(1, 2), output_padding=(1,)),
    "transposed 3-D": conv_layer(
        (3, 3, 2, 3, 2), (1, 3, 3, 3), strides=(2, 1, 2), output_padding=(1, 0, 0)
    ),
}  # fmt: skip
"""Convolutions by what is special about them."""

MATRICES = {
    "Gemm": matrix_layer("Gemm", 7, 9),
    "Gemm of one output": matrix_layer("Gemm", 1, 9),
    "MatMul": matrix_layer("MatMul", 9, 6),
    "MatMul with the weight on the left": matrix_layer("MatMul", 6, 8, weight_on_left=True),
}
"""Matrices by what is special about them."""

LAYERS = CONVOLUTIONS | MATRICES
"""All of them."""
