"""CP with the spatial modes merged: 1x1, depthwise kxk, 1x1.

    W[o, i, k]  ~  sum over r of  A[r, o] B[r, i] C[r, k],        k over all taps of the kernel

The first step mixes channels, the middle one carries the layer's whole geometry for each component alone.
The error and the conditioning are better than those of `cp4`, at ``kh kw`` instead of ``kh + kw`` weights
per component.

Source: A.-H. Phan et al., "Stable low-rank tensor decomposition for compression of convolutional neural
    network", ECCV 2020, section 2.
"""

from math import prod

from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Ranks
from onnxdecomp.methods.solvers.cp_method import SOLVERS, CpMethod, shared_refusal


class Cp3(CpMethod):
    """CP of ``(O, I, K)``, for kernels with any number of spatial axes."""

    name = "cp3"

    def refusal(self, layer: Layer) -> str | None:
        """Refuse matrices, 1x1 kernels and depthwise layers."""
        return shared_refusal(layer)

    def kernel_modes(self, layer: Layer) -> tuple[int, ...]:
        """Return the number of taps as the one kernel mode."""
        return (prod(layer.kernel),)

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the three steps; with groups, each group has R components of its own."""
        geometry, ones = layer.geometry, (1,) * len(layer.kernel)
        components = layer.group * ranks[0]
        pointwise = Geometry.pointwise(geometry.n_axes, layer.group)
        whole = geometry.on_axes(range(geometry.n_axes), components)
        return (
            StepSpec((components, layer.weight_shape[1], *ones), pointwise),
            StepSpec((components, 1, *layer.kernel), whole),
            StepSpec((layer.out_channels, ranks[0], *ones), pointwise),
        )


METHODS = tuple(Cp3(solver) for solver in SOLVERS)
