"""What to believe of a moment that few patches told: less of it, and more of a simpler one.

Few patches show few directions, and what is fitted to them alone is wrong elsewhere. So a moment C is blended
with a target. A patch has axes: channels and the taps of a kernel, or channels and the places of a tensor
that was flattened before a matrix, and how channels go together is about the same everywhere. Split in two,

    target = level A (x) B        A: (a, a) and B: (b, b), of trace a and b, level = tr(C) / D, D = a b

A is the mean over the second part of what C says of the first, B the other way round: a^2 + b^2 numbers that
all patches tell, in place of D^2. For a matrix whose inputs have one axis the target is the identity.

Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
Multivariate Analysis 88 (2004), for the share; Chen, Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE
covariance estimation", IEEE Transactions on Signal Processing 58 (2010), for that of the identity; Werner,
Jansson and Stoica, "On estimation of covariance matrices with Kronecker product structure", ibid. 56 (2008).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.thin_moment import Kronecker, ThinMoment

LEAST_LEVEL = 1e-6
"""Share of the identity in both parts of a target, so that they have an inverse."""


def shrinkage(moment: Moment | ThinMoment, n_patches: int) -> float:
    """Return how much of a moment ``(G, D, D)`` is better taken from the identity of the same trace, 0..1.

    The share is near 0 where many patches spread over few directions, and near 1 where there are fewer
    patches than directions.
    """
    if isinstance(moment, ThinMoment):
        squares, trace = moment.squares, moment.trace**2
    else:
        squares = float(np.sum(np.square(moment)))  # tr(C C)
        trace = float(np.sum(np.square(np.trace(moment, axis1=1, axis2=2))))  # tr(C)^2, over the groups
    size = moment.shape[-1]
    above = (1 - 2 / size) * squares + trace
    below = (n_patches + 1 - 2 / size) * (squares - trace / size)
    return min(1.0, above / below) if below > 0 else 1.0


def shrunk(moment: Moment | ThinMoment, n_patches: int, axes: Sequence[int] = ()) -> Moment | ThinMoment:
    """Return a moment ``(G, D, D)`` blended with its target, as far as there are few patches.

    Args:
        moment: Second moment or covariance of the patches.
        n_patches: How many there were.
        axes: Of a patch; their product is D.
    """
    target = Separable.of(moment, n_patches, axes)
    share = target.share(moment, n_patches) if target else shrinkage(moment, n_patches)
    if isinstance(moment, ThinMoment):
        if target is None:
            return moment.blended(1 - share, share * moment.trace / moment.shape[-1])
        return target.coordinates(moment).blended(1 - share, share)
    if target is None:
        return _with_identity(moment, share)
    return (1 - share) * moment + share * target.written_out()


@dataclass(frozen=True)
class Separable:
    """A moment ``level A (x) B`` for each group.

    Args:
        level: ``(G,)``.
        first: A, ``(G, a, a)``.
        second: B, ``(G, b, b)``.
    """

    level: Moment
    first: Moment
    second: Moment

    @classmethod
    def of(cls, moment: Moment | ThinMoment, n_patches: int, axes: Sequence[int]) -> "Separable | None":
        """Return the target of a moment ``(G, D, D)``; None where its patches have one axis, or are all zero.

        Of the ways to split the axes in two it is that with the fewest numbers.
        """
        long = [size for size in axes if size > 1]
        if len(long) < 2:
            return None
        splits = ((prod(long[:at]), prod(long[at:])) for at in range(1, len(long)))
        a, b = min(splits, key=lambda split: split[0] ** 2 + split[1] ** 2)
        if isinstance(moment, ThinMoment):
            blocks = (np.sqrt(moment.weights)[:, np.newaxis] * moment.rows).reshape(-1, a, b)
            first = np.tensordot(blocks, blocks, ((0, 2), (0, 2)))[np.newaxis] / b
            second = np.tensordot(blocks, blocks, ((0, 1), (0, 1)))[np.newaxis] / a
        else:
            whole = moment.reshape(-1, a, b, a, b)
            first, second = np.einsum("gikjk->gij", whole) / b, np.einsum("gikil->gkl", whole) / a
        level = np.trace(first, axis1=1, axis2=2) / a  # (G,)
        if not level.any():
            return None
        return cls(level, _regular(first, n_patches * b), _regular(second, n_patches * a))

    def written_out(self) -> Moment:
        """Return it as ``(G, D, D)``."""
        a, b = self.first.shape[-1], self.second.shape[-1]
        whole = np.einsum("g,gij,gkl->gikjl", self.level, self.first, self.second, optimize=True)
        return np.asarray(whole.reshape(-1, a * b, a * b))

    def coordinates(self, moment: ThinMoment) -> ThinMoment:
        """Return the same moment in coordinates in which this is the identity."""
        root = Kronecker(np.sqrt(self.level[0]) * _power(self.first, 0.5)[0], _power(self.second, 0.5)[0])
        return replace(moment, rows=moment.rows @ root.inverse, before=root, after=root)

    def share(self, moment: Moment | ThinMoment, n_patches: int) -> float:
        """Return how much of a moment ``(G, D, D)`` is better taken from this, 0..1.

        The expected square of what the patches tell wrongly over the square of what this differs by. A basis
        goes by large directions and a least-squares solution by all of them alike, so squares are counted
        halfway: ``tr(M X M X)``, M being the inverse root of the target.

        Work: ``2 (a + b) D^2`` operations a group; of n rows ``2 (a + b + n) n D``.
        """
        n_groups, size = moment.shape[:2]
        scale = np.where(self.level > 0, self.level, 1.0)[:, np.newaxis, np.newaxis]
        if isinstance(moment, ThinMoment):
            half = Kronecker(_power(self.first, -0.25)[0] / np.sqrt(scale[0]), _power(self.second, -0.25)[0])
            half_way = replace(moment, rows=moment.rows @ half)
            squares, traces = half_way.squares, half_way.trace**2
        else:
            a, b = self.first.shape[-1], self.second.shape[-1]
            seen = _power(self.first, -0.5) @ (moment / scale).reshape(n_groups, a, b * size)
            seen = _power(self.second, -0.5)[:, np.newaxis] @ seen.reshape(n_groups, a, b, size)
            seen = seen.reshape(moment.shape)  # M C
            squares = float(np.einsum("gij,gji->", seen, seen))
            traces = float(np.sum(np.square(np.trace(seen, axis1=1, axis2=2))))
        wrong, apart = (squares + traces) / (n_patches + 1), squares - n_groups * size
        return min(1.0, wrong / apart) if apart > 0 else 1.0


def _regular(part: Moment, n_patches: int) -> Moment:
    """Return a part ``(G, n, n)`` of a target with the trace n and an inverse; the identity if it is zero."""
    size = part.shape[-1]
    level = np.trace(part, axis1=1, axis2=2)[:, np.newaxis, np.newaxis] / size
    part = np.where(level > 0, part / np.where(level > 0, level, 1.0), np.eye(size))
    return _with_identity(part, max(shrinkage(part, n_patches), LEAST_LEVEL))


def _with_identity(moment: Moment, share: float) -> Moment:
    """Blend a moment ``(G, D, D)`` with the identity of the same trace."""
    size = moment.shape[-1]
    level = np.trace(moment, axis1=1, axis2=2) / size  # (G,)
    return np.asarray((1 - share) * moment + (share * level)[:, np.newaxis, np.newaxis] * np.eye(size))


def _power(part: Moment, exponent: float) -> Moment:
    """Return a power of a positive definite ``(G, n, n)``."""
    values, vectors = np.linalg.eigh(part)
    return np.asarray((vectors * values[:, np.newaxis] ** exponent) @ vectors.swapaxes(1, 2))
