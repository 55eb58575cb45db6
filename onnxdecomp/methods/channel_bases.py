"""What Tucker-2 and tensor train share: both compress the channels of the two sides of each group.

A group's weight is seen as a stack of matrices ``(D, O/G, I/G)``, one for each of the D kernel positions.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import FloatArray, Spectrum
from onnxdecomp.methods.solvers.gram_svd import working_dtype
from onnxdecomp.methods.solvers.hooi import Bases, core_energies, hosvd


def channels(layer: Layer) -> tuple[int, int]:
    """Return output and input channels of one group."""
    return layer.out_channels // layer.group, layer.in_channels // layer.group


def channel_bounds(layer: Layer) -> tuple[int, int]:
    """Return the largest useful ranks of the output and the input side of a group.

    A side's channels span no more dimensions than the other side and the kernel together have.
    """
    out_channels, in_channels = channels(layer)
    n_taps = prod(layer.kernel)
    return min(out_channels, in_channels * n_taps), min(in_channels, out_channels * n_taps)


def single_channel(layer: Layer) -> str | None:
    """Return a sentence when one side of a group has a single channel, so that it cannot be compressed."""
    for side, count in zip(("output", "input"), channels(layer), strict=True):
        if count < 2:
            where = "each group has" if layer.group > 1 else "the layer has"
            return f"{where} a single {side} channel, which cannot be compressed further"
    return None


def stacks(layer: Layer, weight: FloatArray) -> Iterator[FloatArray]:
    """Yield each group's weight as a stack ``(D, O/G, I/G)``, one group at a time to bound memory."""
    out_channels, in_channels = channels(layer)
    blocks = weight.reshape(layer.group, out_channels, in_channels, -1)  # (G, O/G, I/G, D)
    for block in blocks:
        yield np.ascontiguousarray(block.transpose(2, 0, 1), dtype=working_dtype(block))


def joined(groups: Sequence[Sequence[FloatArray]], specs: Sequence[StepSpec]) -> list[FloatArray]:
    """Stack the factors of the groups, one list ``(M, M', D)`` per group, into the planned shapes."""
    return [
        np.stack(parts).reshape(spec.weight_shape)
        for parts, spec in zip(zip(*groups, strict=True), specs, strict=True)
    ]


class ChannelBases:
    """The HOSVD bases of every group and the energies of the cores between them.

    Args:
        layer: The layer.
        weight: ``(O, I/G, *K)``.
        max_ranks: How many vectors of the output and the input side are kept; None for all.

    Attributes:
        bases: One per group.
        energy: Squared norm of the weight.
        out_spectrum: What a smaller output rank cuts off.
        in_spectrum: What a smaller input rank cuts off.
    """

    def __init__(self, layer: Layer, weight: FloatArray, max_ranks: tuple[int, int] | None) -> None:
        self._layer, self._weight = layer, weight
        self.bases: list[Bases] = [hosvd(stack, max_ranks) for stack in stacks(layer, weight)]
        self.energy = sum(bases.energy for bases in self.bases)
        self._is_whole = max_ranks is None or max_ranks == channel_bounds(layer)
        (rows, columns), n_taps = channels(layer), prod(layer.kernel)
        self.out_spectrum = self._spectrum((rows, columns * n_taps), [b.out_values for b in self.bases])
        self.in_spectrum = self._spectrum((columns, rows * n_taps), [b.in_values for b in self.bases])

    @cached_property
    def _core(self) -> FloatArray:
        """Energy ``(a, b)`` of the cores at each pair of vectors, summed over the groups."""
        weights = stacks(self._layer, self._weight)
        cores = [core_energies(stack, bases) for stack, bases in zip(weights, self.bases, strict=True)]
        return np.asarray(np.sum(cores, axis=0))

    def lost_energy(self, out_rank: int, in_rank: int) -> float:
        """Return the energy outside the leading `out_rank` and `in_rank` vectors of the two sides."""
        core = self._core
        hidden = 0.0 if self._is_whole else max(0.0, self.energy - float(np.sum(core)))
        return hidden + float(np.sum(core[out_rank:]) + np.sum(core[:out_rank, in_rank:]))

    def _spectrum(self, shape: tuple[int, int], values: Sequence[FloatArray]) -> Spectrum:
        """Return the spectrum of one side over all groups."""
        root = np.sqrt(np.sum(np.square(values), axis=0))[: min(shape)]
        return Spectrum(shape, root, self.energy)
