"""Channel and spatial SVD, one after the other: channels of one side, then the axes of the smaller kernel.

::

    input     (O, I, kh, kw) -> (Rc, I, 1, 1), (Rs, Rc, kh, 1), (O, Rs, 1, kw)
    output    (O, I, kh, kw) -> (Rs, I, kh, 1), (Rc, Rs, 1, kw), (O, Rc, 1, 1)

Or with kh and kw the other way round, as in spatial SVD. The side whose channels are compressed has an
orthonormal basis; what the weight is in that basis, the core, is cut between its axes. The first step
of a spatial SVD has ``I kh Rs`` weights, the first two of the input form have ``(I + kh Rs) Rc``: far fewer
where a wide layer is to become much smaller.

Source: Zhang et al. 2015 (the "asymmetric 3d" decomposition).
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks
from onnxdecomp.methods.channel_svd import ChannelSvd
from onnxdecomp.methods.solvers.balance import balance
from onnxdecomp.methods.spatial_svd import SpatialSvd


class ChannelSpatialSvd(Method):
    """A pointwise step before or after the two steps of a spatial SVD.

    Args:
        side: ``input`` or ``output``, as in `ChannelSvd`.
        order: ``vertical-first`` or ``horizontal-first``, as in `SpatialSvd`.
    """

    name: ClassVar[str] = "channel-spatial-svd"
    rank_names: ClassVar[tuple[str, ...]] = ("R_channel", "R_spatial")
    league: ClassVar[str] = "cuts"

    def __init__(self, side: str, order: str) -> None:
        self.variant = f"{side}-{order}"
        self.channel, self.spatial = ChannelSvd(side), SpatialSvd(order)

    @property
    def kind(self) -> str:
        """Each side by itself, as in `ChannelSvd`, in either order of the axes."""
        return f"{self.name}/{self.channel.variant}"

    @property
    def core_place(self) -> int:
        """Which of the two steps of the channel SVD has the kernel."""
        return 1 if self.channel.variant == "input" else 0

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what either of the two refuses, depthwise layers among it."""
        return self.spatial.refusal(layer) or self.channel.refusal(layer)

    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return the bounds of the two; that of the second one for a core that is whole."""
        (channel,) = self.channel.rank_bounds(layer)
        return channel, *self.spatial.rank_bounds(self.core_layer(layer, channel))

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the three steps; the rank between the axes is lowered to what the core has."""
        channel, spatial = ranks
        core = self.core_layer(layer, channel)
        specs = list(self.channel.plan(layer, (channel,)))
        specs[self.core_place : self.core_place + 1] = self.spatial.plan(core, self.core_ranks(core, spatial))
        return tuple(specs)

    def core_layer(self, layer: Layer, channel_rank: int) -> Layer:
        """Return the layer as it is between channels of which one side is compressed."""
        spec = self.channel.plan(layer, (channel_rank,))[self.core_place]
        return replace(layer, weight_shape=spec.weight_shape)

    def core_ranks(self, core: Layer, spatial_rank: int) -> Ranks:
        """Return the rank between the axes of a core, which may have no more."""
        return (min(spatial_rank, *self.spatial.rank_bounds(core)),)

    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> Analysis:
        """Analyze the weight in both ways."""
        return ChannelSpatialAnalysis(self, layer, weight, rng, max_ranks)

    def solve_flops(self, layer: Layer, ranks: Ranks) -> float:
        """Add up the work of the two on the weight, and of the second one on the core."""
        channel, spatial = ranks
        core = self.core_layer(layer, channel)
        return (
            self.channel.solve_flops(layer, (channel,))
            + self.spatial.solve_flops(layer, (spatial,))
            + self.spatial.solve_flops(core, self.core_ranks(core, spatial))
        )


class ChannelSpatialAnalysis(Analysis):
    """The basis and both spectra of the whole weight; a core is cut when its rank is known."""

    def __init__(
        self,
        method: ChannelSpatialSvd,
        layer: Layer,
        weight: FloatArray,
        rng: np.random.Generator,
        max_ranks: Ranks | None,
    ) -> None:
        self._method, self._layer = method, layer
        self._seed = int(rng.integers(2**63))  # each call of `weights` starts from the same randomness
        self._channel = method.channel.analyze(layer, weight, rng, max_ranks[:1] if max_ranks else None)
        self.spectra = (*self._channel.spectra, method.spatial.spectrum(layer, weight))

    def error(self, ranks: Ranks) -> float:
        """Return an upper bound: what the basis loses, and what the second cut of the whole weight does.

        The core is the weight seen in an orthonormal basis, so its cut loses no more.
        """
        energy = self.spectra[0].energy
        if not energy:
            return 0.0
        channel, spatial = ranks
        used = self._method.core_ranks(self._method.core_layer(self._layer, channel), spatial)
        lost = sum(spectrum.tail(rank) for spectrum, rank in zip(self.spectra, (channel, *used), strict=True))
        return float(np.sqrt(min(1.0, lost / energy)))

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return the basis and the two factors of the core, in the order of the steps."""
        method, (channel, spatial) = self._method, ranks
        core_layer = method.core_layer(self._layer, channel)
        basis, core = self._basis_and_core(channel)
        analysis = method.spatial.analyze(
            core_layer, core, np.random.default_rng(self._seed), method.core_ranks(core_layer, spatial)
        )
        factors = analysis.weights(method.core_ranks(core_layer, spatial))
        factors.insert(0 if method.core_place else 2, basis)
        return _balanced(factors, self._layer.group)

    def _basis_and_core(self, rank: int) -> tuple[FloatArray, FloatArray]:
        """Return the pointwise step with orthonormal channels, and the step with the kernel."""
        factors = self._channel.weights((rank,))
        n_groups, place = self._layer.group, self._method.core_place
        basis, core = factors[1 - place], factors[place]
        if place:  # (G R, I/G, 1...) before (O, R, *K)
            norms = np.sqrt(np.sum(np.square(basis), axis=tuple(range(1, basis.ndim)), keepdims=True))
            by_group = norms.reshape(n_groups, 1, rank, *(1,) * (core.ndim - 2))
            scaled = core.reshape(n_groups, -1, *core.shape[1:]) * by_group
            return _over(basis, norms), scaled.reshape(core.shape)
        blocks = basis.reshape(n_groups, -1, rank)  # (G, O/G, R), after (G R, I/G, *K)
        norms = np.sqrt(np.sum(np.square(blocks), axis=1, keepdims=True))  # (G, 1, R)
        return _over(blocks, norms).reshape(basis.shape), core * norms.reshape(-1, *(1,) * (core.ndim - 1))


def _over(values: FloatArray, norms: FloatArray) -> FloatArray:
    """Divide by norms, and leave what is zero."""
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def _balanced(factors: list[FloatArray], n_groups: int) -> list[FloatArray]:
    """Even out the norms of the steps ``(G M, M', *K)``, each group by itself."""
    blocks = [factor.reshape(n_groups, -1, *factor.shape[1:]) for factor in factors]
    even = zip(*(balance(group) for group in zip(*blocks, strict=True)), strict=True)
    return [np.stack(parts).reshape(factor.shape) for parts, factor in zip(even, factors, strict=True)]


METHODS = tuple(
    ChannelSpatialSvd(side, order)
    for side in ("input", "output")
    for order in ("vertical-first", "horizontal-first")
)
