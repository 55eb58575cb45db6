"""What the CP methods share: one solve per rank and group, kept, and stacked over the groups."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks
from onnxdecomp.methods.solvers.cp_als import als_flops, solve_als
from onnxdecomp.methods.solvers.cp_greedy import greedy_flops, solve_greedy
from onnxdecomp.methods.solvers.cp_nls import nls_flops, solve_nls
from onnxdecomp.methods.solvers.cp_tensor import CpFit, Factors, Matrix, exact_factors, trivial_rank


@dataclass(frozen=True)
class Solver:
    """One way to find CP factors.

    Args:
        variant: Its name behind ``cp3/`` or ``cp4/``.
        solve: ``solve(tensor, rank, rng)``.
        flops: ``flops(shape, rank)``, an estimate of its work.
        automatic: False for a baseline.
    """

    variant: str
    solve: Callable[[NDArray[np.floating], int, np.random.Generator], CpFit]
    flops: Callable[[tuple[int, ...], int], float]
    automatic: bool


SOLVERS = (
    Solver("nls", solve_nls, nls_flops, True),
    Solver("als", solve_als, als_flops, False),
    Solver("greedy", solve_greedy, greedy_flops, False),
)


class CpMethod(Method):
    """A chain ``1x1, depthwise steps, 1x1`` of R components; subclasses say how the kernel is split.

    Args:
        solver: How the factors are found.
    """

    nested = False

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.variant = solver.variant
        self.automatic = solver.automatic

    @abstractmethod
    def kernel_modes(self, layer: Layer) -> tuple[int, ...]:
        """Return the sizes of the tensor's modes that the kernel becomes."""

    def block_shape(self, layer: Layer) -> tuple[int, ...]:
        """Return the shape ``(O/G, I/G, kernel modes)`` of the tensor of one group."""
        out_channels, in_channels = layer.weight_shape[:2]
        return (out_channels // layer.group, in_channels, *self.kernel_modes(layer))

    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return the rank at which every tensor of this shape has an exact CP form without a solver."""
        return (trivial_rank(self.block_shape(layer)),)

    def solve_flops(self, layer: Layer, ranks: Ranks) -> float:
        """Return an estimate of the work of one solve: CP has no cheap way from one rank to another."""
        if ranks == self.rank_bounds(layer):
            return float(layer.n_params)
        return layer.group * self.solver.flops(self.block_shape(layer), ranks[0])

    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> "CpAnalysis":
        """Keep the weight; the work is done by the first question about each rank."""
        tensors = np.asarray(weight, np.float64).reshape(layer.group, *self.block_shape(layer))
        return CpAnalysis(self.solver, tensors, layer.kernel, int(rng.integers(2**63)))


def shared_refusal(layer: Layer) -> str | None:
    """Return why no CP form makes sense, or None: the conditions that do not depend on the split."""
    if not layer.kernel:
        return f"{layer.op_type} has no kernel, so CP would be a plain SVD: svd is the method for it"
    if max(layer.kernel) == 1:
        return "the kernel has one tap, so CP would be a plain SVD: svd is the method for it"
    if layer.weight_shape[1] == 1 and layer.out_channels == layer.group:
        return "the layer is depthwise: each channel has a kernel of its own, and CP would only add 1x1 steps"
    return None


class CpAnalysis(Analysis):
    """The solves of one weight.

    The error falls with the rank over all ranks that were asked for: a solution that is worse than one of a
    lower rank is replaced by that one, padded with zero components. Each solve draws from a generator of its
    own, so solutions do not depend on the order of the questions, except for this replacement.

    Args:
        solver: How the factors are found.
        tensors: ``(G, O/G, I/G, kernel modes)``.
        kernel: ``K`` of the layer.
        seed: Of the generators.
    """

    def __init__(self, solver: Solver, tensors: Matrix, kernel: tuple[int, ...], seed: int) -> None:
        self._solver = solver
        self._tensors = tensors
        self._kernel = kernel
        self._seed = seed
        self._norms = np.array([np.linalg.norm(t) for t in tensors])  # (G,)
        self._solved: dict[int, tuple[float, list[Factors]]] = {}

    def error(self, ranks: Ranks) -> float:
        """Return the relative error of the solution at `ranks`, which is kept for `weights`."""
        return self._solution(ranks[0])[0]

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return ``(G R, I/G, 1..)``, one ``(G R, 1, *k)`` per kernel mode, and ``(O, R, 1..)``."""
        groups = self._solution(ranks[0])[1]
        ones = (1,) * len(self._kernel)
        outputs = np.concatenate([f[0].T for f in groups])  # (O, R)
        inputs = np.concatenate([f[1] for f in groups])  # (G R, I/G)
        middle = [np.concatenate([f[n] for f in groups]) for n in range(2, len(groups[0]))]  # (G R, k)
        if len(middle) == 1:
            shapes = [self._kernel]
        else:
            shapes = [(*ones[:axis], k, *ones[axis + 1 :]) for axis, k in enumerate(self._kernel)]
        steps = [m.reshape(-1, 1, *shape) for m, shape in zip(middle, shapes, strict=True)]
        return [inputs.reshape(*inputs.shape, *ones), *steps, outputs.reshape(*outputs.shape, *ones)]

    def _solution(self, rank: int) -> tuple[float, list[Factors]]:
        """Return the relative error and the factors of each group."""
        if rank not in self._solved:
            self._solved[rank] = self._solve(rank)
            best_error, best = np.inf, self._solved[rank][1]
            for known in sorted(self._solved):
                if self._solved[known][0] <= best_error:
                    best_error, best = self._solved[known]
                else:
                    self._solved[known] = (best_error, [_padded(factors, known) for factors in best])
        return self._solved[rank]

    def _solve(self, rank: int) -> tuple[float, list[Factors]]:
        if rank == trivial_rank(self._tensors.shape[1:]):
            return 0.0, [exact_factors(tensor) for tensor in self._tensors]
        generators = (np.random.default_rng([self._seed, rank, g]) for g in range(len(self._tensors)))
        fits = [self._solver.solve(t, rank, rng) for t, rng in zip(self._tensors, generators, strict=True)]
        distances = [fit.rel_error * norm for fit, norm in zip(fits, self._norms, strict=True)]
        whole = float(np.linalg.norm(self._norms))
        error = float(np.linalg.norm(distances)) / whole if whole else 0.0
        return min(1.0, error), [fit.factors for fit in fits]


def _padded(factors: Factors, rank: int) -> Factors:
    """Add zero components up to `rank`."""
    return [np.pad(u, ((0, rank - len(u)), (0, 0))) for u in factors]
