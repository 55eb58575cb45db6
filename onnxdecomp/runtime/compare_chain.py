"""Compare a chain with its layer, alone in onnxruntime."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.emit import data_shape, layer_model
from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Chain, FloatArray, recompose
from onnxdecomp.runtime.compare import SAME_RESULT, output_error
from onnxdecomp.runtime.session import Array, open_session, run

EXTRA_STEPS = 3
"""Kernel applications beyond the first along each axis of the input a chain is checked on."""

MAX_ROWS = 2
"""Batch, or rows of a matrix product, a chain is checked on."""


@dataclass(frozen=True)
class ChainCheck:
    """What came out of running a chain against its layer.

    Args:
        rel_error: Relative difference between the chain and the dense layer that holds the chain
            multiplied out; the worse of onnxruntime's optimizations off and on. Only rounding should be left.
        output_error: Relative error of the chain's output against the original layer's on white noise.
        tolerance: What `rel_error` may be.
        problem: Why the check failed, as a sentence; None when it passed.
    """

    rel_error: float
    output_error: float
    tolerance: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the chain does what its weights multiply out to."""
        return self.problem is None


def verify_chain(
    weight: FloatArray,
    bias: FloatArray | None,
    chain: Chain,
    dtype: np.dtype | type = np.float32,
    *,
    seed: int = 0,
    threads: int = 1,
) -> ChainCheck:
    """Run a chain as a small model against the dense layer it multiplies out to, optimizations off and on.

    Any mistake in stride, pad, dilation, group or axis order makes the two differ. The input is just large
    enough for a few applications of the kernel, so that the check costs the same for every resolution.

    Args:
        weight: ``(O, I/G, *K)``, the layer's original weight.
        bias: ``(O,)`` or None.
        chain: The chain.
        dtype: Element type of the model; float32 is used where onnxruntime has no kernel for it.
        seed: Seed of the input.
        threads: Threads inside an operator.
    """
    try:
        return _check_chain(weight, bias, chain, np.dtype(dtype), seed, threads)
    except ModelError:
        if np.dtype(dtype) == np.float32:
            raise
        return _check_chain(weight, bias, chain, np.dtype(np.float32), seed, threads)


def _check_chain(
    weight: FloatArray, bias: FloatArray | None, chain: Chain, dtype: np.dtype, seed: int, threads: int
) -> ChainCheck:
    layer = chain.layer
    in_shape = check_shape(layer)
    source = np.random.default_rng(seed).standard_normal(data_shape(layer, in_shape)).astype(dtype)

    def outputs(
        specs: Sequence[StepSpec], weights: Sequence[FloatArray], modes: tuple[bool, ...]
    ) -> list[Array]:
        model = layer_model(layer, specs, weights, bias, dtype, in_shape)
        return [run(open_session(model, optimize=m, threads=threads), {"x": source})["y"] for m in modes]

    made = outputs(chain.specs, chain.weights, (False, True))
    try:
        whole = recompose(chain.specs, chain.weights, layer.group).astype(dtype)
    except ValueError as error:
        return ChainCheck(inf, inf, 0.0, f"{chain.method} on {layer.key}: {error}.")
    (planned,) = outputs((layer.spec,), (whole,), (False,))
    del whole
    (original,) = outputs((layer.spec,), (weight,), (False,))
    rel_error = max(output_error(planned, y) for y in made)
    tolerance = SAME_RESULT[str(dtype)]
    problem = None
    if not rel_error <= tolerance:
        problem = (
            f"{chain.method} on {layer.key}: the chain differs from the layer it multiplies out to by "
            f"{rel_error:.2g}, more than {tolerance:.0e}, on an input of {'x'.join(map(str, source.shape))}."
        )
    return ChainCheck(rel_error, output_error(original, made[0]), tolerance, problem)


def check_shape(layer: Layer) -> tuple[int, ...]:
    """Return the ``(N, *spatial)`` a chain is checked on: small, but every part of the geometry acts.

    A size that is cut keeps its remainder by the stride, on which the pads of ``SAME_*`` depend.
    """
    geometry = layer.geometry
    enough = [
        (kernel - 1) * dilation + 1 + EXTRA_STEPS * stride
        for kernel, dilation, stride in zip(layer.kernel, geometry.dilations, geometry.strides, strict=True)
    ]
    if layer.in_shape is None:
        return (MAX_ROWS, *enough)
    rows, *sizes = layer.in_shape
    cut = (e + (s - e) % stride for s, e, stride in zip(sizes, enough, geometry.strides, strict=True))
    return (min(rows, MAX_ROWS), *map(min, sizes, cut))
