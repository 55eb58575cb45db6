"""Sequences of tensors, which are lists here, and optional values, which may be None."""

from typing import Any

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator


def _place(position: Tensor | None, default: int) -> int:
    return default if position is None else int(position.item())


@operator("SequenceConstruct")
def sequence_construct(node: Node, *inputs: Tensor) -> list[Tensor]:
    """Return a sequence of the inputs."""
    return list(inputs)


@operator("SequenceEmpty")
def sequence_empty(node: Node) -> list[Tensor]:
    """Return a sequence of nothing."""
    return []


@operator("SequenceAt")
def sequence_at(node: Node, sequence: list[Tensor], position: Tensor) -> Tensor:
    """Return one tensor of a sequence."""
    return sequence[int(position.item())]


@operator("SequenceInsert")
def sequence_insert(
    node: Node, sequence: list[Tensor], tensor: Tensor, position: Tensor | None = None
) -> list[Tensor]:
    """Return the sequence with one more tensor."""
    longer = list(sequence)
    longer.insert(_place(position, len(longer)), tensor)
    return longer


@operator("SequenceErase")
def sequence_erase(node: Node, sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    """Return the sequence without one of its tensors."""
    shorter = list(sequence)
    shorter.pop(_place(position, -1))
    return shorter


@operator("SequenceLength")
def sequence_length(node: Node, sequence: list[Tensor]) -> Tensor:
    """Return how many tensors there are."""
    return torch.tensor(len(sequence))


@operator("ConcatFromSequence")
def concat_from_sequence(node: Node, sequence: list[Tensor]) -> Tensor:
    """Join the tensors of a sequence along an axis, or along a new one."""
    join = torch.stack if node.get("new_axis", 0) else torch.cat
    return join(sequence, node.require("axis"))


@operator("SplitToSequence")
def split_to_sequence(node: Node, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """Cut along an axis into a sequence: by lengths, by one length, or into single slices."""
    axis = node.get("axis", 0)
    if lengths is None:
        keep = node.get("keepdims", 1)
        return [part if keep else part.squeeze(axis) for part in x.split(1, axis)]
    return list(x.split(lengths.tolist(), axis))


@operator("SequenceMap")
def sequence_map(node: Node, *inputs: Any) -> tuple[list[Any], ...]:
    """Run a graph on each element of a sequence."""
    own = len(inputs) - len(node.captured)
    first, *others = inputs[:own]
    around = dict(zip(node.captured, inputs[own:], strict=True))
    body = node.require("body")
    columns: list[list[Any]] = [[] for _ in body.outputs]
    for n, value in enumerate(first):
        extra = [other[n] if isinstance(other, list) else other for other in others]
        for column, result in zip(columns, body((value, *extra), around), strict=True):
            column.append(result)
    return tuple(columns)


@operator("Optional", "OptionalGetElement")
def optional(node: Node, x: Any = None) -> Any:
    """Return the value itself."""
    return x


@operator("OptionalHasElement")
def optional_has_element(node: Node, x: Any = None) -> Tensor:
    """Tell whether there is a value."""
    return torch.tensor(x is not None)
