"""Fold what follows a convolution and only scales or shifts its channels into the convolution itself.

Before:  t = Conv(x, W, b);  y = BatchNormalization(t, gamma, beta, mean, var)
After:   y = Conv(x, s W, s b + (beta - s mean))     with s = gamma / sqrt(var + epsilon) per channel

Mul and Add of a constant per channel are folded alike, in any order and number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS, Lens, Place
from onnxdecomp.graph.weights import Constant, trace

_FIRST_OPSET = 7
"""Older Mul and Add broadcast by attribute, and an older BatchNormalization trains by default."""

DEFAULT_EPSILON = 1e-5
"""What BatchNormalization adds to the variance where it does not say."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One folded node: BatchNormalization with its four constants, Mul or Add with one."""

    place: Place
    constants: tuple[Constant, ...]


@dataclass(frozen=True, eq=False)
class Tail:
    """The nodes behind a convolution that can be folded into it, first to last."""

    folds: tuple[Fold, ...]

    @property
    def output(self) -> str:
        """Name of what the last of them makes."""
        return str(self.folds[-1].place.proto.output[0])

    def affine(self, model: Model, n_channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what all of them do to a channel: ``y = scale x + shift``, two arrays ``(O,)``."""
        scale, shift = np.ones(n_channels), np.zeros(n_channels)
        for fold in self.folds:
            values = [np.asarray(c.array(model), np.float64).reshape(-1) for c in fold.constants]
            match fold.place.proto.op_type:
                case "Mul":
                    scale, shift = scale * values[0], shift * values[0]
                case "Add":
                    shift = shift + values[0]
                case _:
                    epsilon = fold.place.node.attrs.get("epsilon", DEFAULT_EPSILON)
                    factor, offset = normalization(*values, epsilon=epsilon)
                    scale, shift = scale * factor, shift * factor + offset
        return scale, shift


def normalization(
    gamma: NDArray[np.floating],
    beta: NDArray[np.floating],
    mean: NDArray[np.floating],
    variance: NDArray[np.floating],
    *,
    epsilon: float = DEFAULT_EPSILON,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what BatchNormalization does to a channel: ``y = factor x + offset``, two arrays ``(C,)``."""
    factor = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    return factor, np.asarray(beta - factor * mean, np.float64)


def find_tail(lens: Lens, place: Place, n_channels: int, n_axes: int) -> Tail | None:
    """Return the nodes that can be folded into the convolution at `place`, or None.

    Each uses nothing but the output before it and constants per channel, and is its only user.
    """
    folds: list[Fold] = []
    while lens.opset >= _FIRST_OPSET:
        output = place.node.outputs[0]
        if lens.is_output(output) or len(output.outputs) != 1:
            break
        place = lens.place(output.outputs[0])
        constants = _constants(lens, place, output, n_channels, n_axes)
        if constants is None or place.scope is not lens.place(output.inputs[0]).scope:
            break
        folds.append(Fold(place, constants))
    return Tail(tuple(folds)) if folds else None


def _constants(
    lens: Lens, place: Place, data: Any, n_channels: int, n_axes: int
) -> tuple[Constant, ...] | None:
    """Return the constants of a node that scales or shifts channels, or None for any other node."""
    node = place.node
    if place.proto.domain not in STANDARD_DOMAINS:
        return None
    if place.proto.op_type == "BatchNormalization":
        used = [output for output in node.outputs if not output.is_empty()]
        frozen = not node.attrs.get("training_mode", 0) and node.attrs.get("spatial", 1)
        if len(used) != 1 or not frozen or len(node.inputs) != 5 or node.inputs[0] is not data:
            return None
        others = node.inputs[1:]
        shapes: set[tuple[int, ...]] = {(n_channels,)}
    elif place.proto.op_type in ("Mul", "Add"):
        others = [tensor for tensor in node.inputs if tensor is not data]
        shapes = {(1,) * n for n in range(n_axes + 3)}
        shapes |= {(n_channels, *(1,) * n_axes), (1, n_channels, *(1,) * n_axes)}
    else:
        return None
    found = [trace(lens, tensor, place.scope) for tensor in others]
    constants = tuple(c for c in found if not isinstance(c, str) and c.shape in shapes)
    return constants if constants and len(constants) == len(others) else None
