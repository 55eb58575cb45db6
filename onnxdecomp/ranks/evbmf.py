"""``evbmf[:W]``: the rank that a Bayesian model of signal and noise finds in the singular values.

Source: Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14 (2013), theorem 2 and section 5. The weakening of the rank follows
Gusak et al., "MUSCO: multi-stage compression of neural networks" (2019).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.methods.base import FloatArray, Spectrum
from onnxdecomp.ranks.policy import Choice, Policy
from onnxdecomp.ranks.snap import snap_up
from onnxdecomp.ranks.study import Study

TAU = 2.5129
"""Root that fixes the smallest detectable signal: tau = 2.5129 sqrt(L / M)."""


@dataclass(frozen=True)
class Evbmf(Policy):
    """Keep the rank R - weaken * (R - r), with r the Bayesian and R the full rank.

    Args:
        weaken: In (0, 1]; 1 takes the Bayesian rank itself, smaller values keep more.
    """

    weaken: float = 1.0

    name = "evbmf"

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Read an optional weakening factor in (0, 1]."""
        if not argument:
            return cls()
        try:
            weaken = float(argument)
        except ValueError:
            weaken = 0.0
        if not 0.0 < weaken <= 1.0:
            raise UsageError(f"--rank evbmf:{argument}: give a weakening factor in (0, 1], as in evbmf:0.8.")
        return cls(weaken)

    def choose(self, study: Study) -> Choice:
        """Take the method that ends with the fewest weights at its own Bayesian ranks."""
        found = []
        noise_only = False
        for method in study.methods:
            if not method.nested:
                continue
            bounds = method.rank_bounds(study.layer)
            bayesian = [evbmf_rank(spectrum) for spectrum in study.analysis(method).spectra]
            if 0 in bayesian:
                noise_only = True
                continue
            ranks = tuple(
                snap_up(round(bound - self.weaken * (bound - rank)), bound, study.block)
                for rank, bound in zip(bayesian, bounds, strict=True)
            )
            candidate = study.candidate(method, ranks)
            if study.shrinks(candidate):
                found.append(candidate)
        if found:
            return min(found, key=lambda c: (c.n_params, c.error))
        if noise_only:
            return "EVBMF takes the whole weight for noise (rank 0), which says nothing about a rank"
        return "no method makes this layer smaller at its EVBMF ranks"


def evbmf_rank(spectrum: Spectrum) -> int:
    """Return the number of singular values that stand out of the noise; 0 when none does.

    Args:
        spectrum: Of an L x M matrix; taken as L <= M whichever way it lies.

    Source: Nakajima et al. (2013), equations (57) to (65).
    """
    n_short, n_long = sorted(spectrum.shape)
    squares = np.zeros(n_short)
    squares[: len(spectrum.values)] = np.square(np.asarray(spectrum.values, np.float64))[:n_short]
    if spectrum.energy <= 0 or n_short < 2:
        return 0
    alpha = n_short / n_long
    tau = TAU * np.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    upper = spectrum.energy / (n_short * n_long)
    edge = min(int(np.ceil(n_short / (1 + alpha))) - 1, n_short) - 1
    lower = max(
        squares[min(edge + 1, n_short - 1)] / (n_long * threshold), squares[edge + 1 :].mean() / n_long
    )
    lower = min(max(lower, upper * 1e-12), upper)
    from scipy.optimize import minimize_scalar  # takes half a second to load, and only this policy needs it

    best = minimize_scalar(
        _free_energy,
        bounds=(np.log(lower), np.log(upper)),
        args=(squares, alpha, n_long, threshold),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return int(np.sum(squares > n_long * threshold * np.exp(best.x)))


def _free_energy(log_noise: float, squares: FloatArray, alpha: float, n_long: int, threshold: float) -> float:
    """Return the part of the free energy that depends on the noise variance, per Nakajima et al. (2013)."""
    noise = np.exp(log_noise)
    x = np.maximum(squares / (n_long * noise), np.finfo(np.float64).tiny)  # (L,)
    inside, signal = x[x <= threshold], x[x > threshold]
    spread = signal - (1 + alpha)
    t = 0.5 * (spread + np.sqrt(np.square(spread) - 4 * alpha))
    total = np.sum(inside - np.log(inside)) + np.sum(signal - t)
    total += np.sum(np.log((t + 1) / signal) + alpha * np.log(t / alpha + 1))
    return float(total)
