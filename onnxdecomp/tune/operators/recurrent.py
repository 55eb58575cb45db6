"""Recurrent layers: RNN, GRU, LSTM, step by step, in both directions."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""From the input of a step, projected, and the states, hidden one first, to the next states."""

_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], float | None, float | None]] = {
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), None, None),
    "tanh": (lambda x, a, b: torch.tanh(x), None, None),
    "relu": (lambda x, a, b: torch.relu(x), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: functional.leaky_relu(x, a), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: functional.elu(x, a), 1.0, None),
    "softsign": (lambda x, a, b: functional.softsign(x), None, None),
    "softplus": (lambda x, a, b: functional.softplus(x), None, None),
}
"""Function of x, alpha and beta, and the defaults of these where the function reads them."""


def _activations(
    node: Node, default: Sequence[str], n_directions: int
) -> list[list[Callable[[Tensor], Tensor]]]:
    """Return the activations of each direction; alphas and betas go, in order, to those that read them."""
    names = node.get("activations") or tuple(default) * n_directions
    alphas, betas = list(node.get("activation_alpha", ())), list(node.get("activation_beta", ()))
    bound: list[Callable[[Tensor], Tensor]] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise node.unsupported(f"has the activation '{name}'")
        function, a, b = _ACTIVATIONS[name.lower()]
        a = alphas.pop(0) if a is not None and alphas else a
        b = betas.pop(0) if b is not None and betas else b
        bound.append(partial(function, a=a, b=b))
    return [bound[n * len(default) : (n + 1) * len(default)] for n in range(n_directions)]


def _backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn sequences ``(time, batch, ...)`` around, each within its length."""
    if lengths is None:
        return x.flip(0)
    times = torch.arange(x.shape[0])[:, None]
    places = torch.where(times < lengths, lengths - 1 - times, times)  # (time, batch)
    return x[places, torch.arange(x.shape[1])]


def _unroll(
    x: Tensor, lengths: Tensor | None, step: Step, states: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run all steps; after the end of a sequence its states stay and its outputs are zero."""
    rows = []
    for time, row in enumerate(x):
        new = step(row, states)
        if lengths is None:
            rows.append(new[0])
        else:
            alive = (time < lengths)[:, None]
            rows.append(torch.where(alive, new[0], torch.zeros_like(new[0])))
            new = tuple(torch.where(alive, n, s) for n, s in zip(new, states, strict=True))
        states = new
    return torch.stack(rows), states


def _run(
    node: Node,
    x: Tensor,
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
    project: Callable[[int, Tensor], Tensor],
    steps: Sequence[Step],
) -> tuple[Tensor, ...]:
    """Run every direction and put outputs and last states together as the layout says."""
    by_batch = bool(node.get("layout", 0))
    if by_batch:
        x = x.transpose(0, 1)
        initial = [None if state is None else state.transpose(0, 1) for state in initial]
    hidden = node.require("hidden_size")
    zeros = x.new_zeros(x.shape[1], hidden)
    direction = node.get("direction", "forward")
    outputs, finals = [], []
    for n, step in enumerate(steps):
        turned = direction == "reverse" or n == 1
        states = tuple(zeros if state is None else state[n] for state in initial)
        source = _backwards(x, lengths) if turned else x
        y, states = _unroll(project(n, source), lengths, step, states)
        outputs.append(_backwards(y, lengths) if turned else y)
        finals.append(states)
    y = torch.stack(outputs, 1)  # (time, directions, batch, hidden)
    last = [torch.stack(states) for states in zip(*finals, strict=True)]  # (directions, batch, hidden)
    if by_batch:
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return (y, *last)


def _limit(node: Node) -> Callable[[Tensor], Tensor]:
    """Return what keeps the inputs of activations within the clip of the node."""
    clip = node.get("clip", 0.0)
    return (lambda x: x.clamp(-clip, clip)) if clip else (lambda x: x)


@operator("RNN")
def rnn(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run ``h = f(W x + R h + b)``."""
    hidden, limit = node.require("hidden_size"), _limit(node)
    functions = _activations(node, ("Tanh",), len(w))

    def project(n: int, source: Tensor) -> Tensor:
        return functional.linear(source, w[n], None if b is None else b[n, :hidden] + b[n, hidden:])

    def bind(n: int) -> Step:
        def step(row: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (functions[n][0](limit(row + states[0] @ r[n].T)),)

        return step

    return _run(node, x, lengths, (h,), project, [bind(n) for n in range(len(w))])


@operator("GRU")
def gru(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run gated units; gates in the order update z, reset r, hidden h."""
    hidden, limit = node.require("hidden_size"), _limit(node)
    functions = _activations(node, ("Sigmoid", "Tanh"), len(w))
    bias = x.new_zeros(len(w), 6 * hidden) if b is None else b
    late = bool(node.get("linear_before_reset", 0))

    def project(n: int, source: Tensor) -> Tensor:
        return functional.linear(source, w[n], bias[n, : 3 * hidden])

    def bind(n: int) -> Step:
        f, g = functions[n]
        gates, inner = r[n, : 2 * hidden], r[n, 2 * hidden :]
        gate_bias, inner_bias = bias[n, 3 * hidden : 5 * hidden], bias[n, 5 * hidden :]

        def step(row: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (before,) = states
            both = limit(row[:, : 2 * hidden] + functional.linear(before, gates, gate_bias))
            update, reset = f(both[:, :hidden]), f(both[:, hidden:])
            if late:
                recurrent = reset * functional.linear(before, inner, inner_bias)
            else:
                recurrent = functional.linear(reset * before, inner, inner_bias)
            new = g(limit(row[:, 2 * hidden :] + recurrent))
            return ((1 - update) * new + update * before,)

        return step

    return _run(node, x, lengths, (h,), project, [bind(n) for n in range(len(w))])


@operator("LSTM")
def lstm(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run long short-term memory; gates in the order input i, output o, forget f, cell c."""
    hidden, limit = node.require("hidden_size"), _limit(node)
    functions = _activations(node, ("Sigmoid", "Tanh", "Tanh"), len(w))
    coupled = bool(node.get("input_forget", 0))

    def project(n: int, source: Tensor) -> Tensor:
        return functional.linear(source, w[n], None if b is None else b[n, : 4 * hidden] + b[n, 4 * hidden :])

    def bind(n: int) -> Step:
        f, g, last = functions[n]
        peep = (0.0, 0.0, 0.0) if peepholes is None else peepholes[n].split(hidden)

        def step(row: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            before, cell = states
            i, o, forget, new = (row + before @ r[n].T).split(hidden, 1)
            let_in = f(limit(i + peep[0] * cell))
            keep = 1 - let_in if coupled else f(limit(forget + peep[2] * cell))
            cell = keep * cell + let_in * g(limit(new))
            return f(limit(o + peep[1] * cell)) * last(cell), cell

        return step

    return _run(node, x, lengths, (h, c), project, [bind(n) for n in range(len(w))])
