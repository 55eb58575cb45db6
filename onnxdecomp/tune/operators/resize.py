"""Resampling along axes: Resize and Upsample.

Every mode is a weighted sum of a few elements along one axis after the other: which elements with which
weights follows from the node and the lengths alone.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator

_MODES_OPSET = 11
"""From this operator set on, Resize says how coordinates are transformed and rounded."""

_KEPT_TAPS = 256

_MIDDLE = 1e-6
"""Distance up to which a place counts as the middle of two elements, as in onnxruntime."""


@operator("Upsample")
def upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resample by scales, an input from operator set 9 on."""
    factors = scales.tolist() if scales is not None else node.require("scales")
    return _resample(node, x, range(x.ndim), factors, _floors(x, factors), None)


@operator("Resize")
def resize(
    node: Node,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resample by scales or to sizes, of all axes or of some."""
    if node.opset < _MODES_OPSET:
        return upsample(node, x, roi)  # the second input are the scales
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    if sizes is not None and sizes.numel():
        lengths = sizes.tolist()
        factors = [n / x.shape[axis] for n, axis in zip(lengths, axes, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            lengths = [int(factor * x.shape[axis] + 0.5) for axis in axes]
    elif scales is not None:
        factors = scales.tolist()
        lengths = _floors(x, factors, axes)
    else:
        raise node.unsupported("has neither scales nor sizes")
    box = None
    if node.get("coordinate_transformation_mode") == "tf_crop_and_resize" and roi is not None:
        box = roi.tolist()
    return _resample(node, x, axes, factors, lengths, box)


def _floors(x: Tensor, factors: Sequence[float], axes: Sequence[int] | None = None) -> list[int]:
    along = range(x.ndim) if axes is None else axes
    return [int(x.shape[axis] * factor) for axis, factor in zip(along, factors, strict=True)]


def _resample(
    node: Node,
    x: Tensor,
    axes: Sequence[int],
    factors: Sequence[float],
    lengths: Sequence[int],
    box: Sequence[float] | None,
) -> Tensor:
    dtype = x.dtype
    if not x.is_floating_point() and node.get("mode", "nearest") != "nearest":
        x = x.float()
    for n, axis in enumerate(axes):
        part = None if box is None else (box[n], box[n + len(axes)])
        if lengths[n] == x.shape[axis] and factors[n] == 1 and part in (None, (0.0, 1.0)):
            continue
        indices, weights, outside = _taps(node, x.shape[axis], lengths[n], factors[n], part)
        wide = [-1 if a == axis else 1 for a in range(x.ndim)]
        if weights is None:
            y = x.index_select(axis, indices[0])
        else:
            taps = zip(indices, weights.to(x.dtype), strict=True)
            y = sum(x.index_select(axis, i) * w.reshape(wide) for i, w in taps)
        if outside is not None:
            y = torch.where(outside.reshape(wide), torch.tensor(node.get("extrapolation_value", 0.0)), y)
        x = y
    return x if dtype == x.dtype else _whole(x, dtype)


def _whole(x: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return x.clamp(limits.min, limits.max).to(dtype)


@lru_cache(_KEPT_TAPS)
def _taps(
    node: Node, size: int, length: int, factor: float, box: tuple[float, float] | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return which elements are summed and with which weights.

    Args:
        node: The Resize.
        size: Length of the axis.
        length: Length it gets.
        factor: Scale; the ratio of the lengths, up to rounding.
        box: Start and end of the part that is resampled, of the whole; tf_crop_and_resize only.

    Returns:
        Indices ``(taps, length)``; weights of the same shape, None for ones; which elements lie outside of
        the input ``(length,)``, None unless they get a value of their own.
    """
    with torch.inference_mode(False):
        x = _coordinates(node, size, length, factor, box)
        outside = (x < 0) | (x > size - 1) if box is not None else None
        mode = node.get("mode", "nearest")
        if mode == "nearest":
            return _nearest(node, x, factor).clamp(0, size - 1)[None], None, outside
        shrink = min(factor, 1.0) if node.get("antialias", 0) else 1.0
        radius = 2 if mode == "cubic" else 1
        first = math.floor(-radius / shrink) + 1
        steps = torch.arange(first, 2 - first)[:, None]  # (taps, 1)
        distance = (steps - (x - x.floor())).abs() * shrink
        weights = (
            _cubic(distance, node.get("cubic_coeff_a", -0.75)) if radius == 2 else (1 - distance).clamp(0)
        )
        indices = x.floor().long() + steps
        if node.get("exclude_outside", 0):
            weights = torch.where((indices < 0) | (indices >= size), torch.zeros(()), weights)
        if shrink != 1 or node.get("exclude_outside", 0):
            weights = weights / weights.sum(0)
        return indices.clamp(0, size - 1), weights, outside


def _coordinates(
    node: Node, size: int, length: int, factor: float, box: tuple[float, float] | None
) -> Tensor:
    """Return where each element of the output lies in the input, in float32 as onnxruntime does."""
    y = torch.arange(length, dtype=torch.float32)
    default = "half_pixel" if node.opset >= _MODES_OPSET else "asymmetric"
    mode = node.get("coordinate_transformation_mode", default)
    if mode == "asymmetric":
        return y / factor
    if mode == "align_corners":
        return y * (size - 1) / (length - 1) if length > 1 else torch.zeros(length)
    if mode == "tf_crop_and_resize":
        start, end = box or (0.0, 1.0)
        if length == 1:
            return torch.full((1,), 0.5 * (start + end) * (size - 1))
        return start * (size - 1) + y * (end - start) * (size - 1) / (length - 1)
    x = (y + 0.5) / factor - 0.5
    if mode == "pytorch_half_pixel":
        return x if length > 1 else torch.zeros(length)
    if mode == "half_pixel_symmetric":
        single = torch.tensor(factor)
        offset = size / 2 * (1 - length / (single * size))
        return (offset.double() + ((y.double() + 0.5) / single.double() - 0.5)).float()
    if mode != "half_pixel":
        raise node.unsupported(f"transforms coordinates by '{mode}'")
    return x


def _nearest(node: Node, x: Tensor, factor: float) -> Tensor:
    below = x.floor().long()
    if node.opset < _MODES_OPSET:  # what onnxruntime has done before there was an attribute
        return x.ceil().long() if factor < 1 else below
    past = x - below - 0.5  # beyond the middle of two elements
    match node.get("nearest_mode", "round_prefer_floor"):
        case "floor":
            return below
        case "ceil":
            return x.ceil().long()
        case "round_prefer_ceil":
            return below + (past > -_MIDDLE)
        case _:
            return below + (past >= _MIDDLE)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Return the weights of cubic convolution.

    Source: R. Keys, Cubic convolution interpolation for digital image processing (1981), eq. 4.
    """
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros(())))
