"""Convolutions: Conv, ConvTranspose, Col2Im."""

from collections.abc import Sequence

from torch import Tensor
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
    """Convolve `x` with `weight`; pads that differ between the two ends are added first."""
    axes = weight.ndim - 2
    if axes not in _CONV:
        raise node.unsupported(f"has a kernel of {axes} axes")
    strides, dilations = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    begin, end = explicit_pads(node, x.shape[2:], weight.shape[2:], strides, dilations)
    if begin != end:
        x, begin = pad_spatial(x, begin, end), (0,) * axes
    return _CONV[axes](x, weight, bias, strides, begin, dilations, node.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve transposed; pads crop what comes out, and output_padding takes some of it back."""
    axes = weight.ndim - 2
    if axes not in _TRANSPOSED:
        raise node.unsupported(f"has a kernel of {axes} axes")
    strides, dilations = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    extra = per_axis(node, "output_padding", axes, 0)
    full = tuple(
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, stride, k, dilation in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    )
    begin, end = _transposed_pads(node, x.shape[2:], full, strides, extra)
    group = node.get("group", 1)
    if begin == end and not any(extra):
        return _TRANSPOSED[axes](x, weight, bias, strides, begin, 0, group, dilations)
    y = _TRANSPOSED[axes](x, weight, None, strides, 0, 0, group, dilations)
    y = pad_spatial(y, [-b for b in begin], [o - e for e, o in zip(end, extra, strict=True)])
    return y if bias is None else y + bias.reshape(-1, *(1,) * axes)


def _transposed_pads(
    node: Node, shape: Sequence[int], full: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is cropped before and after each axis of the full output."""
    axes, auto = len(full), node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = per_axis(node, "pads", 2 * axes, 0) if auto == "NOTSET" else (0,) * (2 * axes)
        return pads[:axes], pads[axes:]
    lengths = wanted[-axes:] if wanted else [n * stride for n, stride in zip(shape, strides, strict=True)]
    total = [f + o - n for f, o, n in zip(full, extra, lengths, strict=True)]
    if wanted is None:
        total = [max(0, t) for t in total]
    small, large = tuple(int(t / 2) for t in total), tuple(t - int(t / 2) for t in total)
    return (small, large) if auto == "SAME_UPPER" else (large, small)


@operator("Col2Im")
def col2im(node: Node, x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
    """Add overlapping blocks up to an image; of two axes only."""
    image, block = image_shape.tolist(), block_shape.tolist()
    axes = len(image)
    if axes != 2:
        raise node.unsupported(f"has an image of {axes} axes")
    pads = per_axis(node, "pads", 2 * axes, 0)
    strides, dilations = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    begin, end = pads[:axes], pads[axes:]
    padded = [n + b + e for n, b, e in zip(image, begin, end, strict=True)]
    y = functional.fold(x, padded, block, dilations, 0, strides)
    return pad_spatial(y, [-b for b in begin], [-e for e in end])
