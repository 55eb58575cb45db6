"""Channel SVD: one of the two steps keeps the whole kernel, the other mixes channels only.

::

    output   (O, I, *K) -> (R, I, *K), (O, R, 1...)      M = (O, I K)     Zhang et al. 2015
    input    (O, I, *K) -> (R, I, 1...), (O, R, *K)      M = (O K, I)

The input form runs its first step at full resolution when the layer is strided.
"""

from math import prod
from typing import ClassVar

from onnxdecomp.layer import Layer
from onnxdecomp.methods.split import SplitMethod


class ChannelSvd(SplitMethod):
    """Cut between the channels of one side and everything else."""

    name: ClassVar[str] = "channel-svd"

    def __init__(self, side: str) -> None:
        self.variant = side

    def first_axes(self, layer: Layer) -> tuple[int, ...]:
        """Give all axes to the first step for the output side, none for the input side."""
        return tuple(range(len(layer.kernel))) if self.variant == "output" else ()

    def refusal(self, layer: Layer) -> str | None:
        """Refuse matrices, 1x1 kernels and depthwise layers."""
        if prod(layer.kernel) == 1:
            return "the kernel is one sample wide, so both steps would be the same: svd is the method for it"
        channels = layer.out_channels if self.variant == "output" else layer.in_channels
        if channels // layer.group < 2:
            where = "each group has" if layer.group > 1 else "the layer has"
            return f"{where} a single {self.variant} channel, so there are no channels to mix"
        return self.no_rank_to_cut(layer)


METHODS = (ChannelSvd("output"), ChannelSvd("input"))
