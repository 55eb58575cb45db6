"""Comparisons and logic; no gradients but those through Where."""

from collections.abc import Callable

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator

_COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
}  # fmt: skip


def _bind(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Tensor, Tensor], Tensor]:
    def evaluate(node: Node, a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return evaluate


for _name, _function in _COMPARISONS.items():
    operator(_name)(_bind(_function))


@operator("Not")
def negate(node: Node, x: Tensor) -> Tensor:
    """Return the opposite."""
    return torch.logical_not(x)


@operator("IsNaN")
def is_nan(node: Node, x: Tensor) -> Tensor:
    """Tell which elements are no numbers."""
    return torch.isnan(x)


@operator("IsInf")
def is_inf(node: Node, x: Tensor) -> Tensor:
    """Tell which elements are infinite, on the sides that are asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.get("detect_positive", 1):
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if node.get("detect_negative", 1) else found


@operator("Where")
def where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take elements of `a` where the condition holds and of `b` elsewhere."""
    return torch.where(condition, a, b)
