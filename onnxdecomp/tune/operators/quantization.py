"""Integers with a scale; gradients pass to the scale and to what is dequantized, not through rounding."""

import torch
from torch import Tensor

from onnxdecomp.tune.elements import torch_dtype
from onnxdecomp.tune.registry import Node, operator

_RANGES = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-32768, 32767),
    torch.int32: (0, 65535),
}
"""Numbers an integer type holds; uint16 is kept in int32."""


def _spread(node: Node, scale: Tensor, x: Tensor) -> Tensor:
    """Return scales that broadcast to `x`: one, one for each entry of an axis, or one for each block."""
    if scale.numel() == 1 and not node.get("block_size", 0):
        return scale.reshape(())
    axis, block = node.get("axis", 1) % x.ndim, node.get("block_size", 0)
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return scale.reshape([-1 if n == axis else 1 for n in range(x.ndim)])


@operator("DequantizeLinear")
def dequantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return ``(x - zero) scale``."""
    dtype = torch_dtype(node.get("output_dtype")) if node.get("output_dtype", 0) else scale.dtype
    if x.dtype == torch.int32:  # sums of products: float32 holds no difference of these exactly
        moved = (x if zero is None else x - _spread(node, zero, x)).to(scale.dtype)
    else:
        moved = x.to(scale.dtype) if zero is None else x.to(scale.dtype) - _spread(node, zero, x)
    return (moved * _spread(node, scale, x)).to(dtype)


@operator("QuantizeLinear")
def quantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return ``round(x / scale) + zero`` within the integer type; no gradient passes."""
    dtype = zero.dtype if zero is not None else torch.uint8
    if zero is None and node.get("output_dtype", 0):
        dtype = torch_dtype(node.get("output_dtype"))
    if dtype not in _RANGES:
        raise node.unsupported(f"makes elements of {dtype}")
    low, high = _RANGES[dtype]
    y = torch.round(x.detach() / _spread(node, scale, x).detach())
    return (y if zero is None else y + _spread(node, zero, x)).clamp(low, high).to(dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to uint8 over the range of the input itself; no gradient passes."""
    x = x.detach()
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)
