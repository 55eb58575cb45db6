"""Normalizations; BatchNormalization uses its stored statistics, Dropout does nothing."""

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator

_GROUP_SCALES_CHANNELS_OPSET = 21


@operator("BatchNormalization")
def batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Normalize by stored means and variances, which are constants here."""
    if node.get("training_mode", 0):
        raise node.unsupported("normalizes by the batch (training_mode)")
    epsilon = node.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean.detach(), variance.detach(), scale, bias, False, 0.0, epsilon)


@operator("Dropout")
def dropout(node: Node, x: Tensor, *settings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input itself, and a mask that keeps everything."""
    return x, torch.ones_like(x, dtype=torch.bool) if node.n_outputs > 1 else x


@operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize each channel of each sample."""
    return functional.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize groups of channels; scale and bias are of groups before operator set 21, then of channels."""
    groups = node.require("num_groups")
    if node.opset < _GROUP_SCALES_CHANNELS_OPSET:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Normalize over all axes from one on; give mean and inverse deviation where asked."""
    axis, epsilon = node.get("axis", -1) % x.ndim, node.get("epsilon", 1e-5)
    shape = x.shape[axis:]
    if node.n_outputs == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    axes = tuple(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@operator("RMSNormalization")
def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root mean square over all axes from one on."""
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + node.get("epsilon", 1e-5)) * scale


@operator("LpNormalization")
def lp_normalization(node: Node, x: Tensor) -> Tensor:
    """Divide by the 1- or 2-norm along an axis; zeros stay zeros."""
    axis = node.get("axis", -1)
    norm = torch.linalg.vector_norm(x, node.get("p", 2), axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    """Bring mean to 0 and variance to 1 over some axes."""
    axes = node.get("axes", (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def lrn(node: Node, x: Tensor) -> Tensor:
    """Divide by a power of the sum of squares over neighbouring channels."""
    size = node.require("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = x.square().reshape(x.shape[0], x.shape[1], -1)
    padded = functional.pad(squares, (0, 0, before, after))
    sums = padded.unfold(1, size, 1).sum(-1).reshape(x.shape)
    scale = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * sums
    return x / scale ** node.get("beta", 0.75)
