"""CP with each spatial axis a mode: 1x1, depthwise kx1, depthwise 1xk, 1x1.

    W[o, i, y, x]  ~  sum over r of  A[r, o] B[r, i] C[r, y] E[r, x]

Source: V. Lebedev et al., "Speeding-up convolutional neural networks using fine-tuned CP-decomposition",
    ICLR 2015, equation 7.
"""

from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Ranks
from onnxdecomp.methods.solvers.cp_method import SOLVERS, CpMethod, shared_refusal


class Cp4(CpMethod):
    """CP of ``(O, I, kh, kw)``, for kernels that extend along both of two spatial axes."""

    name = "cp4"

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what no CP can do, and kernels that are not two-dimensional."""
        general = shared_refusal(layer)
        if general is not None:
            return general
        size = "x".join(map(str, layer.kernel))
        if len(layer.kernel) != 2:
            return f"cp4 splits two spatial axes, and the kernel {size} has {len(layer.kernel)}: use cp3."
        if min(layer.kernel) == 1:
            return f"the kernel {size} extends along one axis only, so cp3 does the same in one step fewer"
        return None

    def kernel_modes(self, layer: Layer) -> tuple[int, ...]:
        """Return height and width."""
        return layer.kernel

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the four steps; with groups, each group has R components of its own."""
        geometry, (height, width) = layer.geometry, layer.kernel
        components = layer.group * ranks[0]
        pointwise = Geometry.pointwise(geometry.n_axes, layer.group)
        return (
            StepSpec((components, layer.weight_shape[1], 1, 1), pointwise),
            StepSpec((components, 1, height, 1), geometry.on_axes((0,), components)),
            StepSpec((components, 1, 1, width), geometry.on_axes((1,), components)),
            StepSpec((layer.out_channels, ranks[0], 1, 1), pointwise),
        )


METHODS = tuple(Cp4(solver) for solver in SOLVERS)
