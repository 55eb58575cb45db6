"""Reductions along axes, running sums, and the largest elements."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator

Reduction = Callable[[Tensor, tuple[int, ...]], Tensor]


def _product(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=True)
    total = x.sum(axes, keepdim=True)
    return torch.div(total, x.numel() // max(1, total.numel()), rounding_mode="trunc")


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes: _extreme(x, axes, largest=True),
    "ReduceMin": lambda x, axes: _extreme(x, axes, largest=False),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True),
    "ReduceL2": lambda x, axes: _norm(x, axes),
    "ReduceSumSquare": lambda x, axes: x.square().sum(axes, keepdim=True),
    "ReduceLogSum": lambda x, axes: x.sum(axes, keepdim=True).log(),
    "ReduceLogSumExp": lambda x, axes: x.logsumexp(axes, keepdim=True),
}


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, axes, keepdim=True)
    return x.square().sum(axes, keepdim=True).double().sqrt()


def _extreme(x: Tensor, axes: tuple[int, ...], *, largest: bool) -> Tensor:
    """Return the largest or smallest elements; of none, the worst number there is."""
    if x.dtype == torch.bool:
        return (x.any if largest else x.all)(axes, keepdim=True)
    if x.numel():
        return (x.amax if largest else x.amin)(axes, keepdim=True)
    if x.is_floating_point():
        worst = -math.inf if largest else math.inf
    else:
        worst = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
    reduced = {axis % x.ndim for axis in axes}
    return x.new_full([1 if axis in reduced else n for axis, n in enumerate(x.shape)], worst)


def _bind(reduction: Reduction) -> Callable[[Node, Tensor, Tensor | None], Tensor]:
    def evaluate(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = node.ints("axes", axes)
        if not given and node.get("noop_with_empty_axes", 0):
            return reduction(x.unsqueeze(0), (0,)).squeeze(0).to(x.dtype)  # sums of one element each
        along = given or tuple(range(x.ndim))
        y = (
            reduction(x, along).to(x.dtype)
            if x.ndim
            else reduction(x.reshape(1), (0,)).reshape(()).to(x.dtype)
        )
        return y if node.get("keepdims", 1) or not x.ndim else y.squeeze(along)

    return evaluate


for _name, _reduction in _REDUCTIONS.items():
    operator(_name)(_bind(_reduction))


@operator("ArgMax")
def arg_max(node: Node, x: Tensor) -> Tensor:
    """Return where the largest element stands along an axis: the first, or the last where asked."""
    return _argument(node, x, torch.argmax)


@operator("ArgMin")
def arg_min(node: Node, x: Tensor) -> Tensor:
    """Return where the smallest element stands along an axis: the first, or the last where asked."""
    return _argument(node, x, torch.argmin)


def _argument(node: Node, x: Tensor, find: Callable[..., Tensor]) -> Tensor:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    if node.get("select_last_index", 0):
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
    return find(x, axis, keepdim=keep)


@operator("CumSum")
def cumulative_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Return running sums along an axis, with or without the element itself, from either end."""
    return _running(node, x, int(axis.item()), torch.cumsum, 0)


@operator("CumProd")
def cumulative_product(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Return running products along an axis, with or without the element itself, from either end."""
    return _running(node, x, int(axis.item()), torch.cumprod, 1)


def _running(
    node: Node, x: Tensor, axis: int, function: Callable[[Tensor, int], Tensor], neutral: int
) -> Tensor:
    backwards = bool(node.get("reverse", 0))
    if backwards:
        x = x.flip(axis)
    if node.get("exclusive", 0):
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    y = function(x, axis).to(x.dtype)
    return y.flip(axis) if backwards else y


@operator("TopK")
def top_k(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the k largest or smallest elements along an axis, and where they stand; ties by place."""
    axis = node.get("axis", -1)
    count = int(k.reshape(-1)[0].item()) if k is not None else node.require("k")
    ordered, places = torch.sort(x, dim=axis, descending=bool(node.get("largest", 1)), stable=True)
    return ordered.narrow(axis, 0, count), places.narrow(axis, 0, count)
