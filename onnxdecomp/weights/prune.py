"""Take input channels out of a layer, in the order in which its output misses them least on the data.

What the output loses with channels gone is least when the weights of the others make up for them, as far as
they are alike on the data. Without the channels of a set P, with the moment C of the input::

    W' = W C[:, K] C[K, K]^-1        K all others
    loss = tr(W_P (C^-1[P, P])^-1 W_P^T)

Channels go one after another, the least loss first, a channel's taps at once; weights and C^-1 follow.

Source: Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon", NIPS 1992,
by channels and on the moment of the layer's input in place of the Hessian.
"""

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.refit import RIDGE as REFIT_RIDGE
from onnxdecomp.weights.refit import Metric, patch_size, ridge_solve
from onnxdecomp.weights.thin_moment import ThinMoment

Channels = NDArray[np.intp]

RIDGE = 1e-3
"""Share of the mean of the diagonal that is added to the moment, so that it has an inverse."""

SLOW_CHANNELS = 64
"""Of so many channels one goes at a time, of twice as many two, and so on."""


def removal_order(metric: Metric, least: int) -> tuple[int, ...]:
    """Return which input channels go first, down to `least` of them.

    With I channels of k taps and O outputs the work is about ``I (I k)^2 k + I O (I k) k`` for the few that
    go at a time.

    Args:
        metric: How errors of the weight ``(O, I, *K)`` count; without groups.
        least: Channels that are left at the end, at least 1.
    """
    assert not isinstance(metric.moment, ThinMoment)
    n_channels, size = metric.layer.in_channels, metric.moment.shape[-1]
    n_taps, level = size // n_channels, np.trace(metric.moment[0]) / size
    inverse = np.linalg.inv(metric.moment[0] + RIDGE * (level or 1.0) * np.eye(size))  # (D, D)
    weight = metric.weight[0]  # (O, D)
    left = np.arange(n_channels)
    at_once = max(1, n_channels // SLOW_CHANNELS)
    gone = list[int]()
    while len(left) > least:
        losses = _losses(weight, inverse, n_taps)
        places = np.argsort(losses, kind="stable")[: min(at_once, len(left) - least)]
        gone += left[places].tolist()
        taps = _taps(places, n_taps)  # (P k,)
        rest = _taps(np.delete(np.arange(len(left)), places), n_taps)
        onto = np.linalg.solve(inverse[np.ix_(taps, taps)], inverse[np.ix_(taps, rest)])
        weight = weight[:, rest] - weight[:, taps] @ onto
        inverse = inverse[np.ix_(rest, rest)] - inverse[np.ix_(rest, taps)] @ onto
        left = np.delete(left, places)
    return tuple(gone)


def _losses(weight: FloatArray, inverse: Moment, n_taps: int) -> FloatArray:
    """Return for each channel ``(I,)`` what the output loses when that alone goes too."""
    n_channels = len(inverse) // n_taps
    own = np.arange(n_channels)
    blocks = inverse.reshape(n_channels, n_taps, n_channels, n_taps)[own, :, own]  # (I, k, k)
    weights = weight.reshape(-1, n_channels, n_taps).swapaxes(0, 1)  # (I, O, k)
    return np.asarray(np.sum((weights @ np.linalg.inv(blocks)) * weights, axis=(1, 2)))


def taps_of(layer: Layer, channels: Channels) -> Channels:
    """Return where the values of some input channels of a layer without groups stand in a patch."""
    return _taps(channels, patch_size(layer) // layer.in_channels)


def _taps(channels: Channels, n_taps: int) -> Channels:
    """Return where the values of some channels stand in a patch."""
    return (channels[:, np.newaxis] * n_taps + np.arange(n_taps)).reshape(-1)


def without_channels(metric: Metric, kept: Channels) -> tuple[FloatArray, float]:
    """Return the weight that is best on the data with some input channels alone.

    Args:
        metric: How errors of the weight ``(O, I, *K)`` count; without groups.
        kept: Channels that are left.

    Returns:
        ``(O, len(kept), *K)`` in float64, and the relative error of the layer's output.
    """
    taps = taps_of(metric.layer, kept)
    wanted = metric.product[:, :, taps]  # (1, O, C k)
    found, seen = _solved(metric, wanted, taps)
    # 2 <F, Y> - <F Z, F>, where F (Z + p I) = Y, so that F Z need not be multiplied out
    penalty = REFIT_RIDGE * np.trace(seen[0]) / len(taps)
    gained = np.sum(found * wanted) + penalty * np.sum(np.square(found))
    lost = max(metric.energy - float(gained), 0.0)
    error = float(np.sqrt(lost / metric.energy)) if metric.energy > 0 else 0.0
    out_channels, _, *kernel = metric.layer.weight_shape
    return found.reshape(out_channels, len(kept), *kernel), error


def best_of_channels(metric: Metric, rows: Moment, kept: Channels) -> Moment:
    """Return what is nearest on the data to sums of all channels, as sums of those that are left.

    Args:
        metric: How errors of the weight count; without groups.
        rows: ``(1, R, D)``, weights of the sums.
        kept: Channels that are left.

    Returns:
        ``(1, R, C k)``.
    """
    taps = taps_of(metric.layer, kept)
    return _solved(metric, np.asarray(rows @ metric.moment)[:, :, taps], taps)[0]


def _solved(metric: Metric, wanted: Moment, taps: Channels) -> tuple[Moment, Moment]:
    """Return the weights of some values of a patch, given their products, and the moment of those values."""
    assert not isinstance(metric.moment, ThinMoment)
    seen = metric.moment[:, taps][:, :, taps]
    return ridge_solve(seen, wanted), seen
