"""What the error of one layer does to the network: measured at a few options, carried over to the others.

A small change moves the divergence of the output with the square of its size. So the divergence of an
option is read from a curve through the measured ones, straight in the logarithms of error and divergence.
"""

from collections.abc import Callable, Sequence

import numpy as np

from onnxdecomp.search.options import LayerOptions, Option, middle_of

FLOOR = 1e-12
"""Divergences below this count as this much, so that they have a logarithm."""

SLOPE = 2.0
"""Growth of the divergence with the error, in logarithms, where nothing was measured."""

Diverge = Callable[[LayerOptions, Option], float]
"""Returns the divergence of the network when one layer alone becomes an option."""


class Curve:
    """Divergence of the network's output over the relative error of one layer's output.

    Args:
        errors: Errors at which it was measured.
        divergences: What was measured.
    """

    def __init__(self, errors: Sequence[float], divergences: Sequence[float]) -> None:
        order = np.argsort(errors)
        self._errors = np.log(np.maximum(np.asarray(errors, float)[order], FLOOR))
        measured = np.log(np.maximum(np.asarray(divergences, float)[order], FLOOR))
        self._divergences = np.maximum.accumulate(measured)

    def __call__(self, error: float) -> float:
        """Return the divergence to expect at an error."""
        if error <= 0:
            return 0.0
        x, xs, ys = np.log(max(error, FLOOR)), self._errors, self._divergences
        if x <= xs[0]:
            return float(np.exp(ys[0] + SLOPE * (x - xs[0])))
        if x >= xs[-1]:
            return float(np.exp(ys[-1] + SLOPE * (x - xs[-1])))
        return float(np.exp(np.interp(x, xs, ys)))


def best_fit(layer: LayerOptions, diverge: Diverge) -> tuple[str, float]:
    """Return the name of the fit whose middle option moves the network's output least, and how far."""
    tried = {
        name: diverge(layer, options[middle_of(len(options))]) for name, options in layer.options.items()
    }
    name = min(tried, key=lambda name: (tried[name], name))
    return name, tried[name]


def curve_of(layer: LayerOptions, fit: str, at_middle: float, diverge: Diverge, n_probes: int) -> Curve:
    """Return the curve of the options of a fit, measured at `n_probes` of them, the middle one before."""
    options = layer.options[fit]
    middle = middle_of(len(options))
    places = {middle: at_middle}
    for place in _others(len(options), middle)[: n_probes - 1]:
        places[place] = diverge(layer, options[place])
    return Curve([options[p].error for p in places], list(places.values()))


def _others(n_options: int, middle: int) -> list[int]:
    """Return the ends and the quarters of a list of options, the cheap end first, without the middle."""
    wanted = [n_options - 1, 0, (3 * n_options) // 4, n_options // 4]
    return [p for p in dict.fromkeys(wanted) if p != middle and 0 <= p < n_options]
