"""Convolutions: Conv, ConvTranspose, Col2Im."""

import math
from collections.abc import Sequence
from itertools import product

from torch import Tensor, channels_last
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def per_axis(node: Node, name: str, axes: int, default: int = 1) -> tuple[int, ...]:
    """Return an attribute that has a number for each of so many spatial axes."""
    return tuple(node.get(name) or (default,) * axes)


def explicit_pads(
    node: Node, shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pads before and after each spatial axis of length `shape`, whatever auto_pad says."""
    axes, auto = len(kernel), node.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = per_axis(node, "pads", 2 * axes, 0)
        return pads[:axes], pads[axes:]
    if auto == "VALID":
        return (0,) * axes, (0,) * axes
    total = [
        max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        for size, k, stride, dilation in zip(shape, kernel, strides, dilations, strict=True)
    ]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def pad_spatial(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of `x`; negative numbers crop."""
    flat = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    return functional.pad(x, flat, value=value)


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve `x` with `weight`; pads that differ between the two ends are added first.

    Images are laid out with channels last, as they then stay up to the next Reshape: on a CPU a step of
    training through chains takes a tenth to half less time so.
    """
    axes = weight.ndim - 2
    if axes not in _CONV:
        raise node.unsupported(f"has a kernel of {axes} axes")
    strides, dilations = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    begin, end = explicit_pads(node, x.shape[2:], weight.shape[2:], strides, dilations)
    if begin != end:
        x, begin = pad_spatial(x, begin, end), (0,) * axes
    if axes == 2:
        x = x.contiguous(memory_format=channels_last)
    return _CONV[axes](x, weight, bias, strides, begin, dilations, node.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve transposed; pads crop what comes out, output_padding and output_shape take some of it back."""
    axes = weight.ndim - 2
    if axes not in _TRANSPOSED:
        raise node.unsupported(f"has a kernel of {axes} axes")
    strides, dilations = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    begin, end = _crops(node, x.shape[2:], weight.shape[2:], strides, dilations)
    group, extra = node.get("group", 1), tuple(b - e for b, e in zip(begin, end, strict=True))
    if all(0 <= more < stride for more, stride in zip(extra, strides, strict=True)):
        return _TRANSPOSED[axes](x, weight, bias, strides, begin, extra, group, dilations)
    y = _TRANSPOSED[axes](x, weight, None, strides, 0, 0, group, dilations)
    y = pad_spatial(y, [-b for b in begin], [-e for e in end])
    return y if bias is None else y + bias.reshape(-1, *(1,) * axes)


def _crops(
    node: Node, shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is cropped before and after each axis of the full output; negative numbers add zeros."""
    axes, auto = len(kernel), node.get("auto_pad", "NOTSET")
    extra, wanted = per_axis(node, "output_padding", axes, 0), node.get("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = per_axis(node, "pads", 2 * axes, 0) if auto == "NOTSET" else (0,) * (2 * axes)
        return pads[:axes], tuple(p - o for p, o in zip(pads[axes:], extra, strict=True))
    full = [
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, stride, k, dilation in zip(shape, strides, kernel, dilations, strict=True)
    ]
    lengths = wanted[-axes:] if wanted else [n * stride for n, stride in zip(shape, strides, strict=True)]
    total = [max(0, f + o - n) for f, o, n in zip(full, extra, lengths, strict=True)]
    begin = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
    return begin, tuple(f - b - n for f, b, n in zip(full, begin, lengths, strict=True))


@operator("Col2Im")
def col2im(node: Node, x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
    """Add overlapping blocks up to an image."""
    image, block = image_shape.tolist(), block_shape.tolist()
    axes = len(image)
    pads = per_axis(node, "pads", 2 * axes, 0)
    strides, dilations = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    begin, end = pads[:axes], pads[axes:]
    padded = [n + b + e for n, b, e in zip(image, begin, end, strict=True)]
    counts = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(padded, block, dilations, strides, strict=True)
    ]  # fmt: skip
    columns = x.reshape(x.shape[0], -1, math.prod(block), *counts)
    y = x.new_zeros(x.shape[0], columns.shape[1], *padded)
    for number, place in enumerate(product(*map(range, block))):
        box = tuple(
            slice(p * d, p * d + s * (c - 1) + 1, s)
            for p, d, s, c in zip(place, dilations, strides, counts, strict=True)
        )
        y[(slice(None), slice(None), *box)] += columns[:, :, number]
    return pad_spatial(y, [-b for b in begin], [-e for e in end])
