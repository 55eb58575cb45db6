"""Pooling over windows and over whole images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.operators.conv import explicit_pads, pad_spatial, per_axis
from onnxdecomp.tune.registry import Node, operator

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class _Windows:
    """Where the windows of a pool lie.

    Args:
        kernel: Elements of a window along each axis.
        strides: Steps from one window to the next.
        dilations: Steps from one element of a window to the next.
        begin: Pads before each axis.
        end: Pads after each axis, as the node says.
        beyond: Further elements after these that the last windows reach, negative where none reaches all.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    beyond: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether torch's own pools know such windows."""
        fits = all(2 * pad <= k for pad, k in zip(self.begin, self.kernel, strict=True))
        return fits and self.begin == self.end and max(self.beyond) <= 0


def _windows(node: Node, shape: Sequence[int]) -> _Windows:
    kernel = tuple(node.require("kernel_shape"))
    if len(kernel) not in _MAX:
        raise node.unsupported(f"has windows of {len(kernel)} axes")
    strides = per_axis(node, "strides", len(kernel))
    dilations = per_axis(node, "dilations", len(kernel))
    begin, end = explicit_pads(node, shape, kernel, strides, dilations)
    beyond = []
    for size, k, stride, dilation, b, e in zip(shape, kernel, strides, dilations, begin, end, strict=True):
        window = (k - 1) * dilation + 1
        room = size + b + e - window
        steps = -(-room // stride) if node.get("ceil_mode", 0) else room // stride
        if node.get("ceil_mode", 0) and steps * stride >= size + b:
            steps -= 1  # a window must start in the data or in the pads before it
        beyond.append(steps * stride - room)
    return _Windows(kernel, strides, dilations, begin, end, tuple(beyond))


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Return the largest element of each window, and if asked for its place in the flattened input."""
    if not x.is_floating_point():
        y = max_pool(node, x.double())
        return y.to(x.dtype) if isinstance(y, Tensor) else (y[0].to(x.dtype), y[1])
    windows = _windows(node, x.shape[2:])
    begin, source = windows.begin, x
    if not windows.plain:
        after = tuple(e + b for e, b in zip(windows.end, windows.beyond, strict=True))
        source, begin = pad_spatial(x, begin, after, -math.inf), (0,) * len(begin)
    pool = _MAX[len(begin)]
    settings = (windows.kernel, windows.strides, begin, windows.dilations, False)
    if node.n_outputs < 2:
        return pool(source, *settings)
    y, inner = pool(source, *settings, return_indices=True)
    moved = (0,) * len(begin) if windows.plain else windows.begin
    return y, _global_indices(inner, x.shape, source.shape[2:], moved, bool(node.get("storage_order", 0)))


def _global_indices(
    inner: Tensor, shape: Sequence[int], padded: Sequence[int], begin: Sequence[int], columns_first: bool
) -> Tensor:
    """Turn places within a padded image into places within the flattened input."""
    places = []
    for size, pad in zip(reversed(padded), reversed(begin), strict=True):
        places.append(inner % size - pad)
        inner = inner // size
    order = list(zip(reversed(places), shape[2:], strict=True))  # first axis first
    flat = torch.zeros_like(inner)
    for place, size in reversed(order) if columns_first else order:
        flat = flat * size + place
    planes = torch.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], *(1,) * len(padded))
    return flat + planes * math.prod(shape[2:])


@operator("MaxUnpool")
def max_unpool(node: Node, x: Tensor, indices: Tensor, output_shape: Tensor | None = None) -> Tensor:
    """Put elements back to where MaxPool found them, into zeros."""
    axes = x.ndim - 2
    pads, strides = per_axis(node, "pads", 2 * axes, 0), per_axis(node, "strides", axes)
    kernel = node.require("kernel_shape")
    shape = [
        *x.shape[:2],
        *((n - 1) * s + k - b - e for n, s, k, b, e in
          zip(x.shape[2:], strides, kernel, pads[:axes], pads[axes:], strict=True)),
    ]  # fmt: skip
    y = x.new_zeros(math.prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return y
    return pad_spatial(
        y, (0,) * axes, [n - m for n, m in zip(output_shape.tolist()[2:], shape[2:], strict=True)]
    )


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """Return the mean of each window; pads count where count_include_pad is set, what lies beyond never."""
    windows = _windows(node, x.shape[2:])
    counted = bool(node.get("count_include_pad", 0))
    if windows.plain and max(windows.dilations) == 1:
        axes = len(windows.kernel)
        return _AVERAGE[axes](x, windows.kernel, windows.strides, windows.begin, False, counted)
    ones = x.new_ones(1, 1, *x.shape[2:])
    if counted:
        ones = pad_spatial(ones, windows.begin, windows.end, 1.0)
        ones = pad_spatial(ones, (0,) * len(windows.begin), windows.beyond)
    else:
        ones = _padded(ones, windows)
    return _sums(_padded(x, windows), windows) / _sums(ones, windows)


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Tensor:
    """Return the p-norm of each window."""
    windows, p = _windows(node, x.shape[2:]), node.get("p", 2)
    return _sums(_padded(x.abs() ** p, windows), windows) ** (1 / p)


def _padded(x: Tensor, windows: _Windows) -> Tensor:
    after = tuple(e + b for e, b in zip(windows.end, windows.beyond, strict=True))
    return pad_spatial(x, windows.begin, after)


def _sums(x: Tensor, windows: _Windows) -> Tensor:
    """Return the sum of each window, every channel by itself."""
    planes = x.reshape(-1, 1, *x.shape[2:])
    ones = x.new_ones(1, 1, *windows.kernel)
    y = _CONV[len(windows.kernel)](planes, ones, None, windows.strides, 0, windows.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """Return the mean of each channel."""
    return x.mean(_spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """Return the largest element of each channel; of several, the first has the gradient."""
    y = x.reshape(*x.shape[:2], -1).max(-1).values
    return y.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


@operator("GlobalLpPool")
def global_lp_pool(node: Node, x: Tensor) -> Tensor:
    """Return the p-norm of each channel."""
    return torch.linalg.vector_norm(x, node.get("p", 2), _spatial(x), keepdim=True)
