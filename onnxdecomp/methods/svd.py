"""SVD of a matrix: Gemm, MatMul and convolutions whose kernel is one sample wide.

Before / After, ``n_in -> n_out`` becomes ``n_in -> R -> n_out``::

    y = Gemm (x, W, b)                  h = Gemm (x, V)
                                        y = Gemm (h, U, b)

A strided or padded convolution moves on its first step, where the pads are still zeros and the stride saves
work in the last. A transposed one moves on its last step: there the first runs before the upsampling.

The forms with more steps insert ``R -> R`` matrices. A linear chain gains nothing from them (they are for
experiments that train the steps afterwards), so they are never chosen on their own.
"""

from typing import ClassVar

from onnxdecomp.layer import Layer
from onnxdecomp.methods.split import SplitMethod


class Svd(SplitMethod):
    """``(O, I) = (O, R) @ (R, I)`` in two or more steps."""

    name: ClassVar[str] = "svd"

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.variant = f"{n_steps}-steps"
        self.automatic = n_steps == 2

    def first_axes(self, layer: Layer) -> tuple[int, ...]:
        """Give all axes to the first step, or none when transposed."""
        return () if layer.geometry.transposed else tuple(range(len(layer.kernel)))

    def refusal(self, layer: Layer) -> str | None:
        """Refuse kernels wider than one sample and matrices of rank 1."""
        if any(size > 1 for size in layer.kernel):
            kernel = "x".join(map(str, layer.kernel))
            return f"the kernel {kernel} is wider than one sample: channel-svd is the SVD for it"
        return self.no_rank_to_cut(layer)


METHODS = (Svd(2), Svd(3), Svd(4))
