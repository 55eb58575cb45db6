"""Arithmetic of one and several tensors, element by element, with broadcasting."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from onnxdecomp.tune.elements import torch_dtype
from onnxdecomp.tune.registry import Node, operator

_OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal, "Sign": torch.sign, "Erf": torch.erf, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip
"""Functions of one tensor that torch has under the same rules."""

_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
"""Functions of two tensors that torch has under the same rules."""


def _bind_one(function: Callable[[Tensor], Tensor]) -> Callable[[Node, Tensor], Tensor]:
    def evaluate(node: Node, x: Tensor) -> Tensor:
        return function(x)

    return evaluate


def _bind_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Tensor, Tensor], Tensor]:
    def evaluate(node: Node, a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return evaluate


for _name, _one in _OF_ONE.items():
    operator(_name)(_bind_one(_one))
for _name, _two in _OF_TWO.items():
    operator(_name)(_bind_two(_two))


@operator("Div")
def div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Divide; integers are cut towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(node: Node, base: Tensor, exponent: Tensor) -> Tensor:
    """Return ``base ** exponent`` in the type of the base."""
    if exponent.numel() == 1 and exponent.ndim <= base.ndim and not exponent.requires_grad:
        # a number takes the exact and fast ways of squares and roots
        return torch.pow(base, exponent.item()).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mod")
def modulo(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Return the remainder, with the sign of the divisor, or of the dividend where fmod is set."""
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@operator("Max")
def maximum(node: Node, *inputs: Tensor) -> Tensor:
    """Return the largest of several tensors."""
    return reduce(torch.maximum, inputs)


@operator("Min")
def minimum(node: Node, *inputs: Tensor) -> Tensor:
    """Return the smallest of several tensors."""
    return reduce(torch.minimum, inputs)


@operator("Sum")
def add_all(node: Node, *inputs: Tensor) -> Tensor:
    """Return the sum of several tensors."""
    return reduce(torch.add, inputs)


@operator("Mean")
def mean_of_all(node: Node, *inputs: Tensor) -> Tensor:
    """Return the mean of several tensors."""
    return reduce(torch.add, inputs) / len(inputs)


@operator("BitShift")
def bit_shift(node: Node, x: Tensor, by: Tensor) -> Tensor:
    """Shift the bits of unsigned integers; those that leave on the left are lost.

    Numbers of 64 bits count as 32: these are what weights are packed in.
    """
    if node.require("direction") != "LEFT":
        return torch.bitwise_right_shift(x, by)
    bits = {torch.int32: 16, torch.int64: 32}.get(x.dtype)  # unsigned types are held in wider signed ones
    shifted = torch.bitwise_left_shift(x, by)
    return shifted if bits is None else shifted & (2**bits - 1)


@operator("Cast")
def cast(node: Node, x: Tensor) -> Tensor:
    """Convert the elements; to a 16-bit float means to float32."""
    return x.to(torch_dtype(node.require("to")))


@operator("CastLike")
def cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    """Convert the elements to the type of another tensor."""
    return x.to(like.dtype)


@operator("Identity")
def identity(node: Node, x: Tensor) -> Tensor:
    """Return the input itself."""
    return x
