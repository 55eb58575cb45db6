"""Spatial SVD: the spatial axes are shared out over two steps.

::

    vertical-first     (O, I, kh, kw) -> (R, I, kh, 1), (O, R, 1, kw)      M = (O kw, I kh)
    horizontal-first   (O, I, kh, kw) -> (R, I, 1, kw), (O, R, kh, 1)      M = (O kh, I kw)

The two matrices are different, so each order has its own errors. Strides and pads follow their axis. With
three spatial axes the first one is split from the other two. A depthwise layer becomes two depthwise layers
of R channels for each of its own.

Source: Jaderberg et al. 2014, scheme 2.
"""

from math import prod
from typing import ClassVar

from onnxdecomp.layer import Layer
from onnxdecomp.methods.split import SplitMethod


class SpatialSvd(SplitMethod):
    """Cut between the first spatial axis and the others."""

    name: ClassVar[str] = "spatial-svd"

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def first_axes(self, layer: Layer) -> tuple[int, ...]:
        """Give the first axis to the first step (vertical first), or all others (horizontal first)."""
        axes = tuple(range(len(layer.kernel)))
        return axes[:1] if self.variant == "vertical-first" else axes[1:]

    def refusal(self, layer: Layer) -> str | None:
        """Refuse layers without two spatial axes to part, and matrices of rank 1."""
        if len(layer.kernel) < 2:
            found = "one spatial axis" if layer.kernel else "no spatial axis"
            return f"the layer has {found}, and a spatial split needs two"
        if layer.kernel[0] == 1 or prod(layer.kernel[1:]) == 1:
            kernel = "x".join(map(str, layer.kernel))
            return f"the kernel {kernel} does not extend along both sides of the split"
        return self.no_rank_to_cut(layer)


METHODS = (SpatialSvd("vertical-first"), SpatialSvd("horizontal-first"))
