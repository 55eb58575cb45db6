"""What the error of one layer does to the network: measured at a few options, carried over to the others.

A small change moves the divergence of the output with the square of its size. So the divergence of an
option is read from a curve through the measured ones, straight in the logarithms of error and divergence.
Every method has a curve of its own: errors of the same size in other directions do other things, on a 9x9
kernel four times more after a spatial SVD than after CP.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxdecomp.search.options import LayerOptions, Option, typical_of

FLOOR = 1e-12
"""Divergences below this count as this much, so that they have a logarithm."""

SLOPE, SLOPES = 2.0, (1.5, 3.5)
"""Growth of the divergence with the error, in logarithms, where nothing was measured; and what is believed of
a measured one."""

Diverge = Callable[[LayerOptions, Option], float]
"""Returns the divergence of the network when one layer alone becomes an option."""


class Curve:
    """Divergence of the network's output over the relative error of one layer's output.

    Args:
        errors: Errors at which it was measured.
        divergences: What was measured.
        slope: Growth beyond them, in logarithms.
    """

    def __init__(self, errors: Sequence[float], divergences: Sequence[float], slope: float = SLOPE) -> None:
        self._slope = slope
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
            return float(np.exp(ys[0] + self._slope * (x - xs[0])))
        if x >= xs[-1]:
            return float(np.exp(ys[-1] + self._slope * (x - xs[-1])))
        return float(np.exp(np.interp(x, xs, ys)))

    @property
    def measured_slope(self) -> float:
        """Growth from the least error measured to the largest, in logarithms, as far as it is believed."""
        width = self._errors[-1] - self._errors[0]
        if width <= 0 or not np.isfinite(self._divergences[-1]):  # some option breaks the outputs
            return self._slope
        return float(np.clip((self._divergences[-1] - self._divergences[0]) / width, *SLOPES))


def best_fit(layer: LayerOptions, diverge: Diverge) -> str:
    """Return the name of the fit whose typical option moves the network's output least."""
    if len(layer.options) == 1:
        return next(iter(layer.options))
    tried = {
        name: diverge(layer, options[typical_of(len(options))]) for name, options in layer.options.items()
    }
    return min(tried, key=lambda name: (tried[name], name))


def curves_of(layer: LayerOptions, fit: str, diverge: Diverge, n_probes: int) -> Mapping[str, Curve]:
    """Return a curve for each method of the options of a fit, by its name.

    The method with the most options is measured at `n_probes` of them, every other one at one and grows like
    that.
    """
    options = layer.options[fit]
    typical = typical_of(len(options))
    places: dict[str, list[int]] = {}
    for place, option in enumerate(options):
        places.setdefault(option.candidate.method.name, []).append(place)
    curves: dict[str, Curve] = {}
    slope = SLOPE
    for name, own in sorted(places.items(), key=lambda item: -len(item[1])):
        probed = _probed(own, typical, 1 if curves else n_probes)
        measured = [diverge(layer, options[place]) for place in probed]
        curves[name] = Curve([options[place].error for place in probed], measured, slope)
        slope = curves[name].measured_slope if len(curves) == 1 else slope
    return curves


def _probed(own: Sequence[int], typical: int, n_probes: int) -> list[int]:
    """Return which places of one method to measure: the typical one if it is there, both ends, quarters."""
    n_own = len(own)
    first = own.index(typical) if typical in own else typical_of(n_own)
    wanted = [first, n_own - 1, 0, (3 * n_own) // 4, n_own // 4]
    return [own[place] for place in dict.fromkeys(wanted)][:n_probes]
