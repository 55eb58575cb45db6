"""How a factorization of one layer is fitted to its data: the basis, then the last step.

Which fit makes the better network is not what the error of the layer says: plain bases with a refitted last
step often beat whitened ones on convolutions, and whitened ones are best for matrices. So fits are candidates
like methods and ranks are, and the search over a network tries them on the network's own output.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Analysis, Chain, FloatArray, Method, Ranks, recompose
from onnxdecomp.weights.joint import jointly_fitted, n_steps_of
from onnxdecomp.weights.moments import MAX_ROOT, Moments, is_thin
from onnxdecomp.weights.refit import Metric, refitted
from onnxdecomp.weights.whiten import WhitenedAnalysis, first_axes


@dataclass(frozen=True)
class Fit:
    """One way to fit.

    Args:
        name: For reports.
        shrinkage: Share of the identity in the metric of the basis: 1 is the weight alone, 0 the data.
        refit: Whether the last step is refitted.
        joint: Whether all steps are then fitted together.
    """

    name: str
    shrinkage: float
    refit: bool = True
    joint: bool = False

    def without(self, names: Collection[str]) -> "Fit":
        """Return what is left of a fit when some of ``whitening``, ``refit`` and ``joint`` are left out."""
        fit = replace(SHRUNK, refit=self.refit) if self.joint and "joint" in names else self
        if "whitening" in names and fit.shrinkage < 1.0:
            fit = replace(WEIGHTS, refit=fit.refit)
        if "refit" in names and fit.refit:
            fit = replace(fit, name=f"{fit.name}, not refitted", refit=False, joint=False)
        return fit


WEIGHTS = Fit("weights", 1.0)
SHRUNK = Fit("shrunk", 0.3)
WHITENED = Fit("whitened", 0.0)
JOINT = Fit("joint", 0.3, joint=True)

FITS = (WEIGHTS, SHRUNK, WHITENED, JOINT)
"""The fits that a search tries, each with a refitted last step."""


FEW_FITS = (WEIGHTS, JOINT)
"""Those that it tries where each takes long."""


def default_fit(layer: Layer) -> Fit:
    """Return the fit for a layer when no network output decides: whitened matrices, plain kernels."""
    return WEIGHTS if layer.kernel else WHITENED


def distinct_fits(fits: Sequence[Fit], layer: Layer) -> list[Fit]:
    """Return the fits that differ on a layer.

    One too wide for a root is not whitened, and one too large for a joint fit has none. Of a matrix nothing
    is better on the data than its whitened factors, so these are its joint fit.
    """
    too_large = ("joint",) if n_steps_of(layer) == 0 else ()
    is_matrix = prod(layer.kernel) == 1
    own = [WHITENED if fit.joint and is_matrix else fit.without(too_large) for fit in fits]
    if not _is_whitened(layer):
        own = [fit if fit.joint else WEIGHTS.without(() if fit.refit else ("refit",)) for fit in own]
    return list(dict.fromkeys(own))


def _is_whitened(layer: Layer) -> bool:
    """Tell whether there can be a root of what a layer sees at one place of its kernel."""
    return layer.weight_shape[1] <= MAX_ROOT or is_thin(layer)


@dataclass(frozen=True)
class Data:
    """What samples say about one layer, and how it is used.

    Args:
        metric: How errors of the weight count.
        fit: How to fit.
    """

    metric: Metric
    fit: Fit

    @classmethod
    def of(cls, layer: Layer, weight: FloatArray, moments: Moments, fit: Fit, *, with_bias: bool) -> "Data":
        """Return the data of a layer with its weight ``(O, I/G, *K)``."""
        return cls(Metric.of(layer, weight, moments, with_bias=with_bias), fit)

    def analyze(
        self,
        method: Method,
        layer: Layer,
        weight: FloatArray,
        rng: np.random.Generator,
        max_ranks: Ranks | None,
    ) -> Analysis:
        """Analyze a weight in the metric of the fit's basis."""
        axes = first_axes(layer, method.plan(layer, method.rank_bounds(layer))[0])
        if self.fit.shrinkage >= 1.0 or not _is_whitened(layer):
            return method.analyze(layer, weight, rng, max_ranks)
        root = self.metric.root(axes, self.fit.shrinkage)
        return WhitenedAnalysis(method, layer, weight, root, rng, max_ranks)

    def fitted(self, chain: Chain) -> tuple[Chain, float]:
        """Return a chain, refitted as the fit says, and its relative error on the data."""
        if self.fit.refit:
            start = refitted(chain, self.metric)
            return (jointly_fitted(*start, self.metric) or start) if self.fit.joint else start
        return chain, self.metric.error(recompose(chain.specs, chain.weights, chain.layer.group))
