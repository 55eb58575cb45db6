"""Nodes that hold graphs: If, Loop, Scan."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator


def _apart(node: Node, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Part the inputs of the node from what its bodies see from outside."""
    own = len(inputs) - len(node.captured)
    return inputs[:own], dict(zip(node.captured, inputs[own:], strict=True))


@operator("If")
def if_(node: Node, *inputs: Any) -> tuple[Any, ...]:
    """Return the outputs of one of two graphs."""
    (condition,), around = _apart(node, inputs)
    branch = node.require("then_branch" if bool(condition.item()) else "else_branch")
    result: tuple[Any, ...] = branch((), around)
    return result


@operator("Loop")
def loop(node: Node, *inputs: Any) -> tuple[Any, ...]:
    """Run a graph again and again; its first outputs are carried on, the others are stacked."""
    (limit, condition, *carried), around = _apart(node, inputs)
    body = node.require("body")
    n_carried = len(carried)
    columns: list[list[Tensor]] = [[] for _ in body.outputs[1 + n_carried :]]
    alive = True if condition is None else bool(condition.item())
    for turn in count() if limit is None else range(int(limit.item())):
        if not alive:
            break
        keep, *results = body((torch.tensor(turn), torch.tensor(True), *carried), around)
        alive, carried = bool(keep.item()), results[:n_carried]
        for column, value in zip(columns, results[n_carried:], strict=True):
            column.append(value)
    return (*carried, *(torch.stack(column) if column else torch.zeros(0) for column in columns))


@operator("Scan")
def scan(node: Node, *inputs: Any) -> tuple[Any, ...]:
    """Run a graph over slices of sequences; its first outputs are carried on, the others are stacked."""
    own, around = _apart(node, inputs)
    body, n_scanned = node.require("body"), node.require("num_scan_inputs")
    if node.opset < 9:
        raise node.unsupported("is of operator set 8")
    n_carried = len(own) - n_scanned
    carried, scanned = list(own[:n_carried]), own[n_carried:]
    n_stacked = len(body.outputs) - n_carried
    axes = node.get("scan_input_axes") or (0,) * n_scanned
    flips = node.get("scan_input_directions") or (0,) * n_scanned
    rows = [
        (x.flip(axis) if flip else x).unbind(axis) for x, axis, flip in zip(scanned, axes, flips, strict=True)
    ]
    columns: list[list[Tensor]] = [[] for _ in range(n_stacked)]
    for slices in zip(*rows, strict=True):
        results = body((*carried, *slices), around)
        carried = list(results[:n_carried])
        for column, value in zip(columns, results[n_carried:], strict=True):
            column.append(value)
    out_axes = node.get("scan_output_axes") or (0,) * n_stacked
    out_flips = node.get("scan_output_directions") or (0,) * n_stacked
    stacked = [
        torch.stack(column[::-1] if flip else column, axis)
        for column, axis, flip in zip(columns, out_axes, out_flips, strict=True)
    ]
    return (*carried, *stacked)
