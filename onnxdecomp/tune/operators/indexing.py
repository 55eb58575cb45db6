"""Looking elements up and putting them into place."""

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(indices: Tensor, size: int) -> Tensor:
    """Return indices as int64, those that count from the end turned around."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Take slices along an axis; the shape of the indices takes the place of the axis."""
    axis = node.get("axis", 0) % x.ndim
    if indices.ndim == 0:
        return x.select(axis, int(indices.item()))
    flat = _positive(indices, x.shape[axis]).reshape(-1)
    y = x.index_select(axis, flat)
    return y if indices.ndim == 1 else y.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Take one element for each index along an axis."""
    axis = node.get("axis", 0)
    return x.gather(axis, _positive(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Take slices by tuples of indices, which stand in the last axis."""
    batch = node.get("batch_dims", 0)
    places = tuple(_positive(part, x.shape[batch + n]) for n, part in enumerate(indices.unbind(-1)))
    if not batch:
        return x[places]
    rank = indices.ndim - 1
    leading = tuple(
        torch.arange(x.shape[n]).reshape([-1 if axis == n else 1 for axis in range(rank)])
        for n in range(batch)
    )
    return x[leading + places]


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Put one element for each index along an axis, or combine it with what is there."""
    axis, reduction = node.get("axis", 0), node.get("reduction", "none")
    places = _positive(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Put slices by tuples of indices, which stand in the last axis, or combine them with what is there."""
    reduction = node.get("reduction", "none")
    depth = indices.shape[-1]
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for n, part in enumerate(indices.unbind(-1)):
        places = places * x.shape[n] + _positive(part, x.shape[n])
    rows = x.reshape(-1, *x.shape[depth:]) if depth else x.unsqueeze(0)
    new = updates.reshape(-1, *x.shape[depth:])
    flat = places.reshape(-1)
    if reduction == "none":
        return rows.index_copy(0, flat, new).reshape(x.shape)
    wide = flat.reshape(-1, *(1,) * (rows.ndim - 1)).expand(new.shape)
    return rows.scatter_reduce(0, wide, new, _REDUCE[reduction]).reshape(x.shape)


@operator("OneHot")
def one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """Put one value at the index along a new axis and another one elsewhere."""
    count = int(depth.reshape(-1)[0].item())
    axis = node.get("axis", -1) % (indices.ndim + 1)
    places = torch.where(indices < 0, indices + count, indices).unsqueeze(axis)
    numbers = torch.arange(count).reshape([-1 if n == axis else 1 for n in range(indices.ndim + 1)])
    return torch.where(places == numbers, values[1], values[0])


@operator("NonZero")
def non_zero(node: Node, x: Tensor) -> Tensor:
    """Return the indices of all elements that are not zero, a column each."""
    return x.nonzero().T.contiguous() if x.ndim else x.reshape(1).nonzero().T[:0]


@operator("Compress")
def compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    """Take the slices for which the condition holds."""
    axis = node.get("axis")
    places = condition.nonzero().reshape(-1)
    return x.reshape(-1).index_select(0, places) if axis is None else x.index_select(axis, places)


@operator("ReverseSequence")
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    """Turn the first elements of each sequence around, as many as its length says."""
    batch_axis, time_axis = node.get("batch_axis", 1), node.get("time_axis", 0)
    times = torch.arange(x.shape[time_axis])[:, None]
    places = torch.where(times < lengths, lengths - 1 - times, times)  # (time, batch)
    y = x.movedim((time_axis, batch_axis), (0, 1))
    y = y[places, torch.arange(y.shape[1])[None, :]]
    return y.movedim((0, 1), (time_axis, batch_axis))


@operator("TensorScatter")
def tensor_scatter(node: Node, past: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """Write new slices into a cache along an axis, from a place of its own in each sample."""
    axis = node.get("axis", -2) % past.ndim
    steps = torch.arange(update.shape[axis])
    begin = torch.zeros(past.shape[0], dtype=torch.int64) if starts is None else starts.long()
    places = begin[:, None] + steps[None, :]  # (batch, new)
    if node.get("mode", "linear") == "circular":
        places = places % past.shape[axis]
    moved, new = past.movedim(axis, 1).clone(), update.movedim(axis, 1)
    y = moved.index_put((torch.arange(past.shape[0])[:, None], places), new)
    return y.movedim(1, axis)


@operator("Unique")
def unique(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the different elements or slices, where each is first, which one each is, and their counts."""
    axis = node.get("axis")
    source = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    found, inverse, counts = torch.unique(source, return_inverse=True, return_counts=True, dim=along)
    first = torch.full((len(counts),), len(inverse)).scatter_reduce(
        0, inverse, torch.arange(len(inverse)), "amin"
    )
    if not node.get("sorted", 1):
        order = first.argsort()
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
        return found.index_select(along, order), first[order], rank[inverse], counts[order]
    return found, first, inverse, counts
