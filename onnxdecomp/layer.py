"""The normal form: every layer we may replace is a convolution; a matrix is one without spatial axes.

Axis letters, used everywhere:

    O  output channels            I  input channels         G  groups
    K  kernel, one per spatial axis (kh, kw for images)      R  a rank
    M  channels between two steps of a chain                 N  batch, or rows of a matrix product

A weight is always ``(O, I/G, *K)``: Gemm and MatMul are ``(O, I)``, and the weight of a ConvTranspose,
which ONNX stores as ``(I, O/G, *K)``, is brought to the same axes by `graph.find`.
This module is numpy-free arithmetic on shapes; numbers enter with `methods.base.Chain`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

OpType = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves: one entry per spatial axis in each tuple, none for a matrix.

    Args:
        strides: Steps between applications, in samples.
        pads_begin: Zeros added before each axis (for a transposed convolution: outputs cut off).
        pads_end: Zeros added after each axis.
        dilations: Distance between the taps of the kernel.
        group: Number of groups G.
        auto_pad: ``NOTSET``, or ``SAME_UPPER`` / ``SAME_LOWER``, where the pads follow from the input's
            size when the model runs (the pads here are then zero). ``VALID`` is ``NOTSET`` with zero pads.
        transposed: True for ConvTranspose.
        output_padding: Only for a transposed convolution: outputs added after each axis.
    """

    strides: tuple[int, ...] = ()
    pads_begin: tuple[int, ...] = ()
    pads_end: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER"] = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @classmethod
    def pointwise(cls, n_axes: int, group: int = 1) -> "Geometry":
        """Return the geometry of a 1x1 step: it moves by one sample and pads nothing."""
        ones, zeros = (1,) * n_axes, (0,) * n_axes
        return cls(ones, zeros, zeros, ones, group, output_padding=zeros)

    @property
    def n_axes(self) -> int:
        """Number of spatial axes."""
        return len(self.strides)

    def on_axes(self, axes: Iterable[int], group: int) -> "Geometry":
        """Keep what this geometry does along `axes`; be pointwise along the others.

        A separable chain gives each spatial axis to exactly one of its steps; the composition then
        moves as the whole did.
        """
        kept = set(axes)

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if axis in kept else neutral for axis, v in enumerate(values))

        return replace(
            self,
            strides=pick(self.strides, 1),
            pads_begin=pick(self.pads_begin, 0),
            pads_end=pick(self.pads_end, 0),
            dilations=pick(self.dilations, 1),
            output_padding=pick(self.output_padding, 0),
            group=group,
        )

    def out_shape(self, in_shape: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial output shape for a spatial input shape, both in samples.

        Source: ONNX operators Conv and ConvTranspose.
        """
        shape = []
        for axis, (size, k) in enumerate(zip(in_shape, kernel, strict=True)):
            stride, span = self.strides[axis], (k - 1) * self.dilations[axis] + 1
            pads = self.pads_begin[axis] + self.pads_end[axis]
            if self.transposed:
                shape.append((size - 1) * stride + span - pads + self.output_padding[axis])
            elif self.auto_pad != "NOTSET":
                shape.append(-(-size // stride))
            else:
                shape.append((size + pads - span) // stride + 1)
        return tuple(shape)


@dataclass(frozen=True)
class StepSpec:
    """A step of a chain before it has numbers.

    Args:
        weight_shape: ``(O, I/G, *K)``.
        geometry: How the step moves; its `group` divides O and I.
    """

    weight_shape: tuple[int, ...]
    geometry: Geometry

    @property
    def n_params(self) -> int:
        """Number of weights, without bias."""
        return prod(self.weight_shape)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``(N, *spatial)`` after this step for ``(N, *spatial)`` before it."""
        return (in_shape[0], *self.geometry.out_shape(in_shape[1:], self.weight_shape[2:]))

    def n_macs(self, in_shape: tuple[int, ...]) -> int:
        """Return the multiply-accumulates for an input of ``(N, *spatial)``.

        Each weight is used once per output position, or per input position when transposed.
        """
        return self.n_params * prod(in_shape if self.geometry.transposed else self.out_shape(in_shape))


@dataclass(frozen=True)
class Layer:
    """A node of the graph that we may replace, as shapes; its weight is passed beside it.

    Args:
        key: Name of the node's first output in the graph: unique, where node names are not.
        op_type: Operator of the node.
        weight_shape: ``(O, I/G, *K)``.
        geometry: How the kernel moves; empty for Gemm and MatMul.
        in_shape: ``(N, *spatial)`` of the input, N being the batch or the rows of a matrix product;
            None when it could not be found out.
        weight_on_left: True for a MatMul whose constant is the left operand.
        flattened: Of a matrix, the axes that its inputs were before they were flattened into one, such as
            channels, height and width; empty where that is unknown.
    """

    key: str
    op_type: OpType
    weight_shape: tuple[int, ...]
    geometry: Geometry
    in_shape: tuple[int, ...] | None = None
    weight_on_left: bool = False
    flattened: tuple[int, ...] = ()

    @property
    def spec(self) -> StepSpec:
        """The layer seen as a chain of one step."""
        return StepSpec(self.weight_shape, self.geometry)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per spatial axis; empty for a matrix."""
        return self.weight_shape[2:]

    @property
    def patch_axes(self) -> tuple[int, ...]:
        """Axes of what one output of a group is a weighted sum of: ``(I/G, *K)``, or what was flattened."""
        return self.flattened or self.weight_shape[1:]

    @property
    def group(self) -> int:
        """Number of groups G."""
        return self.geometry.group

    @property
    def out_channels(self) -> int:
        """O over all groups."""
        return self.weight_shape[0]

    @property
    def in_channels(self) -> int:
        """I over all groups."""
        return self.weight_shape[1] * self.group

    @property
    def n_params(self) -> int:
        """Number of weights, without bias."""
        return self.spec.n_params

    @property
    def n_macs(self) -> int | None:
        """Multiply-accumulates of one run, None when the input's shape is unknown."""
        return chain_macs((self.spec,), self.in_shape)


def chain_params(specs: Iterable[StepSpec]) -> int:
    """Return the number of weights of a chain, without bias."""
    return sum(spec.n_params for spec in specs)


def chain_macs(specs: Iterable[StepSpec], in_shape: tuple[int, ...] | None) -> int | None:
    """Return the multiply-accumulates of a chain fed with ``(N, *spatial)``; None for an unknown shape."""
    if in_shape is None:
        return None
    total = 0
    for spec in specs:
        total += spec.n_macs(in_shape)
        in_shape = spec.out_shape(in_shape)
    return total


@dataclass(frozen=True)
class Refusal:
    """Why a node of a decomposable kind is left as it is.

    Args:
        key: Name of the node's first output.
        op_type: Operator of the node.
        reason: A sentence for the report.
    """

    key: str
    op_type: str
    reason: str
