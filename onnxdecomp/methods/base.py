"""What a decomposition method is: it plans a chain (shapes) and makes its weights (numbers).

Parameter counts, MACs, latency, rank search, rewriting, report and the contract tests are written once
and read those two. A new method is one new file in this folder with a `METHODS` tuple.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import Layer, StepSpec, chain_macs, chain_params

FloatArray = NDArray[np.floating]
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Spectrum:
    """The singular values that one rank of a method cuts off.

    Args:
        shape: Rows and columns of the unfolding (of one group, if the layer has groups).
        values: Singular values, largest first; of a grouped layer the root of the sum of squares over
            the groups. May be cut short: `energy` then says how much there was.
        energy: Sum of the squares of all singular values.
    """

    shape: tuple[int, int]
    values: FloatArray
    energy: float

    def tail(self, rank: int) -> float:
        """Return the energy that is lost when `rank` values are kept, never negative."""
        if rank >= min(self.shape):
            return 0.0
        squares = np.square(
            self.values
        )  # summed from the tail: a difference of sums would lose half the digits
        hidden = max(0.0, self.energy - float(np.sum(squares)))
        return hidden + float(np.sum(squares[rank:]))


class Analysis(ABC):
    """What a method found out about one weight: the expensive work, done once.

    Attributes:
        spectra: One per rank of the method when errors at every rank are cheap; empty for CP, where each
            rank is a solve of its own.
    """

    spectra: tuple[Spectrum, ...] = ()

    @abstractmethod
    def error(self, ranks: Ranks) -> float:
        """Return the relative Frobenius error of the weight at `ranks`, in [0, 1]; never squared.

        An upper bound where `weights` improves further. It never rises with any rank.
        """

    @abstractmethod
    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return one float64 array per planned step, shaped as planned, with balanced norms."""


class Method(ABC):
    """One way to write a layer as a chain of smaller steps."""

    name: ClassVar[str]
    """Name on the command line, such as ``spatial-svd``."""

    rank_names: ClassVar[tuple[str, ...]] = ("R",)
    """One word per rank."""

    nested: ClassVar[bool] = True
    """True when one analysis gives spectra and the error at every rank; False when each rank is a solve."""

    variant: str = ""
    """Which of several forms of the method this object is, such as ``vertical-first``."""

    automatic: bool = True
    """False for a form that is only used when it is asked for by ``name/variant``."""

    @property
    def full_name(self) -> str:
        """``name`` or ``name/variant``."""
        return f"{self.name}/{self.variant}" if self.variant else self.name

    @abstractmethod
    def refusal(self, layer: Layer) -> str | None:
        """Return a sentence that says why this method cannot be used on `layer`, or None when it can."""

    @abstractmethod
    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return the largest useful value of each rank: there the chain equals the layer."""

    @abstractmethod
    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the steps of the chain at `ranks`, first to last."""

    @abstractmethod
    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> Analysis:
        """Do the expensive work on a weight ``(O, I/G, *K)``.

        Args:
            layer: The layer; `refusal` said None.
            weight: Its weight, of any float dtype; never modified.
            rng: The only source of chance.
            max_ranks: The largest ranks that will be asked for, which allows a cheaper sketch; None for all.
        """

    def solve_flops(self, layer: Layer, ranks: Ranks) -> float:
        """Return an estimate of the work of `analyze` and `weights` in floating-point operations.

        The default is that of a Gram matrix: each weight meets the smaller side of the largest unfolding.
        """
        return 2.0 * layer.n_params * min(layer.out_channels, layer.n_params // layer.out_channels)


@dataclass(frozen=True)
class Chain:
    """What replaces a layer: planned steps and their weights. The bias stays with the last step.

    Args:
        layer: The replaced layer.
        method: Full name of the method.
        ranks: Its ranks.
        specs: The steps, first to last.
        weights: One array ``(O, I/G, *K)`` per step.
    """

    layer: Layer
    method: str
    ranks: Ranks
    specs: tuple[StepSpec, ...]
    weights: tuple[FloatArray, ...]

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return chain_params(self.specs)

    @property
    def n_macs(self) -> int | None:
        """Multiply-accumulates of one run, None when the input's shape is unknown."""
        return chain_macs(self.specs, self.layer.in_shape)


def decompose(method: Method, analysis: Analysis, layer: Layer, ranks: Ranks) -> Chain:
    """Make the chain of `layer` at `ranks` and check that the made weights are the planned ones.

    Raises:
        ValueError: A rank is out of bounds, or the method made other shapes than it planned (a bug).
    """
    bounds = method.rank_bounds(layer)
    if len(ranks) != len(bounds) or not all(1 <= r <= b for r, b in zip(ranks, bounds, strict=True)):
        raise ValueError(f"{method.full_name} on {layer.key}: ranks {ranks} are not within 1..{bounds}")
    specs = method.plan(layer, ranks)
    weights = tuple(analysis.weights(ranks))
    made, planned = [w.shape for w in weights], [s.weight_shape for s in specs]
    if made != planned:
        raise ValueError(f"{method.full_name} on {layer.key}: planned {planned}, made {made}")
    return Chain(layer, method.full_name, ranks, specs, weights)


def recompose(specs: Sequence[StepSpec], weights: Sequence[FloatArray], group: int) -> FloatArray:
    """Multiply a chain out to the one weight that does the same.

    At most one step has a kernel larger than one along each spatial axis (`Geometry.on_axes`), so kernels
    multiply element by element while channels contract.

    Args:
        specs: The steps, first to last.
        weights: Their arrays ``(O, I/G, *K)``.
        group: Groups of the layer.

    Returns:
        ``(O, I/G, *K)`` in float64.

    Raises:
        ValueError: Two steps share a spatial axis, or the chain mixes channels across groups.
    """
    whole: FloatArray | None = None  # (M, I, *K)
    for spec, weight in zip(specs, weights, strict=True):
        step = _without_groups(np.asarray(weight, np.float64), spec.geometry.group)  # (O, M, *k)
        whole = step if whole is None else _compose(step, whole)
    if whole is None:
        raise ValueError("an empty chain has no weight")
    out_channels, in_channels = whole.shape[:2]
    kernel = whole.shape[2:]
    blocks = whole.reshape(group, out_channels // group, group, in_channels // group, *kernel)
    own = np.arange(group)
    kept = blocks[own, :, own].reshape(out_channels, in_channels // group, *kernel)
    if not np.isclose(np.sum(np.square(kept)), np.sum(np.square(whole))):
        raise ValueError("the chain mixes channels of different groups")
    return kept


def _without_groups(weight: FloatArray, group: int) -> FloatArray:
    """Spread ``(O, I/G, *K)`` over ``(O, I, *K)`` with zeros between the groups."""
    if group == 1:
        return weight
    out_channels, per_group = weight.shape[:2]
    dense = np.zeros((group, out_channels // group, group, per_group, *weight.shape[2:]))
    own = np.arange(group)
    dense[own, :, own] = weight.reshape(group, out_channels // group, per_group, *weight.shape[2:])
    return dense.reshape(out_channels, group * per_group, *weight.shape[2:])


def _compose(step: FloatArray, before: FloatArray) -> FloatArray:
    """Apply a step ``(O, M, *k)`` to ``(M, I, *j)``: ``(O, I, *K)`` with K the larger of k and j per axis."""
    kernel = tuple(max(a, b) for a, b in zip(step.shape[2:], before.shape[2:], strict=True))
    if any(min(a, b) > 1 for a, b in zip(step.shape[2:], before.shape[2:], strict=True)):
        raise ValueError("two steps of a chain share a spatial axis")
    out = np.empty((step.shape[0], before.shape[1], *kernel))
    for position in np.ndindex(*kernel):
        left = step[(..., *(min(p, k - 1) for p, k in zip(position, step.shape[2:], strict=True)))]
        right = before[(..., *(min(p, k - 1) for p, k in zip(position, before.shape[2:], strict=True)))]
        out[(..., *position)] = left @ right  # (O, M) @ (M, I)
    return out


def relative_error(weight: FloatArray, approximation: FloatArray) -> float:
    """Return ``||W - W'|| / ||W||`` in the Frobenius norm; 0 for a zero weight met exactly."""
    exact = np.asarray(weight, np.float64)
    norm = float(np.linalg.norm(exact))
    distance = float(np.linalg.norm(exact - approximation))
    return distance / norm if norm else float(distance > 0)
