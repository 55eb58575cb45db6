"""Activations: functions of one element with parameters, and Softmax with its kin."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator

SOFTMAX_ONE_AXIS_OPSET = 13
"""Before it, Softmax and its kin flatten to a matrix first."""


@operator("Relu")
def relu(node: Node, x: Tensor) -> Tensor:
    """Return ``max(x, 0)``."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """Return x, times alpha where it is negative."""
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """Return x, times a slope of its own where it is negative."""
    return torch.where(x < 0, slope * x, x)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    """Return x where it is above alpha, otherwise 0."""
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    """Return x, or ``alpha (exp(x) - 1)`` where it is negative."""
    return functional.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    """Return x, or ``alpha (exp(x / alpha) - 1)`` where it is negative."""
    return functional.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    """Return ``gamma x``, or ``gamma alpha (exp(x) - 1)`` where it is negative."""
    return node.get("gamma", 1.0507009873554805) * functional.elu(x, node.get("alpha", 1.6732632423543772))


@operator("Sigmoid")
def sigmoid(node: Node, x: Tensor) -> Tensor:
    """Return ``1 / (1 + exp(-x))``."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """Return ``alpha x + beta`` between 0 and 1."""
    return (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0, 1)


@operator("HardSwish")
def hard_swish(node: Node, x: Tensor) -> Tensor:
    """Return ``x max(0, min(1, x / 6 + 1 / 2))``."""
    return functional.hardswish(x)


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    """Return ``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@operator("Mish")
def mish(node: Node, x: Tensor) -> Tensor:
    """Return ``x tanh(softplus(x))``."""
    return functional.mish(x)


@operator("Tanh")
def tanh(node: Node, x: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    return torch.tanh(x)


@operator("Softplus")
def softplus(node: Node, x: Tensor) -> Tensor:
    """Return ``log(1 + exp(x))``."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softsign")
def softsign(node: Node, x: Tensor) -> Tensor:
    """Return ``x / (1 + |x|)``."""
    return functional.softsign(x)


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    """Return x times the normal distribution function, or its approximation by tanh."""
    return functional.gelu(x, approximate=node.get("approximate", "none"))


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    """Return x moved by the bias towards 0 where it is beyond lambd, otherwise 0."""
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return x between two limits: inputs from operator set 11 on, attributes before; the upper one wins."""
    if low is None and high is None:
        low, high = node.get("min"), node.get("max")
        return x if low is None and high is None else torch.clamp(x, low, high)
    return torch.clamp(x, low, high)


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Return ``exp(x)`` that sum to 1 along an axis; before operator set 13, over all axes from it on."""
    return _along_axis(node, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    """Return the logarithm of Softmax."""
    return _along_axis(node, x, torch.log_softmax)


@operator("Hardmax")
def hardmax(node: Node, x: Tensor) -> Tensor:
    """Return 1 at the first largest element along an axis and 0 elsewhere."""
    return _along_axis(node, x, _first_largest)


def _first_largest(x: Tensor, axis: int) -> Tensor:
    return functional.one_hot(x.argmax(axis), x.shape[axis]).to(x.dtype).movedim(-1, axis)


def _along_axis(node: Node, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    if node.opset >= SOFTMAX_ONE_AXIS_OPSET:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    if axis == x.ndim - 1:
        return function(x, -1)
    rows = math.prod(x.shape[:axis])
    return function(x.reshape(rows, -1), 1).reshape(x.shape)
