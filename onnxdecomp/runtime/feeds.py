"""Inputs for a model: which there are, and seeded random ones of a size that runs."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx

from onnxdecomp.errors import ModelError, UsageError, unknown_name
from onnxdecomp.runtime.session import Array, Model, open_session, read_proto, run

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

SIZES = ((224, 224), (64, 64), (32, 32), (48, 320), (128, 128), (512, 512), (640, 640), (16, 16), (8, 8))
"""Height and width tried, in this order, for dynamic axes; a lone dynamic axis gets the width."""

SINGLE = (1, 1)
"""The size of a state of one sample, and the last one tried for everything."""

CHANNELS = 3
"""Size of a dynamic axis before the dynamic height and width."""

WORDS = ("a", "the", "model", "42")
"""What string inputs are drawn from."""

BATCH_NAMES = {"n", "batch", "batch_size", "b"}
"""Names of a dynamic axis that mean the batch wherever they stand."""


@dataclass(frozen=True)
class InputSpec:
    """An input a caller has to feed.

    Args:
        name: Its name in the graph.
        dtype: numpy element type; ``object`` for strings.
        shape: An int for a fixed axis, a name for a symbolic one, None for an unknown one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


def input_specs(model: onnx.ModelProto) -> dict[str, InputSpec]:
    """Return the inputs without an initializer, by name, in the order of the graph.

    Raises:
        UsageError: An input is not a tensor (a sequence, a map, an optional) or has no type.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    initialized |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return {v.name: _input_spec(v) for v in model.graph.input if v.name not in initialized}


def seeded_feeds(
    model: onnx.ModelProto, seed: int, shapes: Shapes | None = None, size: tuple[int, int] = SIZES[0]
) -> dict[str, Array]:
    """Return random inputs: the same for the same seed, whatever the other inputs are.

    Floats are standard normal, integers 0 or 1 (the only ones that index every table), bytes 0 to 255,
    strings a few words. A batch axis has one sample; an axis name has the same size everywhere.

    Args:
        model: The model; its weights are not needed.
        seed: Seed of the numbers.
        shapes: Shapes of inputs by name, which win over the model's own.
        size: Height and width for the dynamic axes of the others.

    Raises:
        UsageError: An input's kind has no random values, or a shape does not fit the model.
    """
    specs = input_specs(model)
    resolved = _resolve(specs, shapes or {}, size)
    return {name: _random_values(specs[name], shape, seed) for name, shape in resolved.items()}


def runnable_feeds(model: Model, seed: int, shapes: Shapes | None = None) -> dict[str, Array]:
    """Return `seeded_feeds` of the first size in `SIZES` on which onnxruntime runs the model.

    First every input gets the size, then only the first input while the others, such as the state of a
    recurrent network, get 1. Then the same with integers that are all 0, which index a table of one row, as
    of a graph of one node. A model whose shapes are all known and that takes no integers is not run.

    Raises:
        UsageError: No random input works, or as `seeded_feeds`.
        ModelError: onnxruntime cannot load the model.
    """
    proto = read_proto(model)
    specs = input_specs(proto)
    sizes = [(size, others) for others in (None, SINGLE) for size in SIZES] + [(SINGLE, SINGLE)]
    tried = dict.fromkeys(tuple(_resolve(specs, shapes or {}, *pair).items()) for pair in sizes)
    integers = {spec.name for spec in specs.values() if spec.dtype.kind in "iu" and spec.dtype != np.uint8}
    if len(tried) == 1 and not integers:
        return seeded_feeds(proto, seed, shapes)
    session = open_session(model)
    failure: ModelError | None = None
    for are_zero, resolved in product((False, True) if integers else (False,), tried):
        feeds = {name: _random_values(specs[name], shape, seed) for name, shape in resolved}
        if are_zero:
            feeds |= {name: np.zeros_like(feeds[name]) for name in integers}
        try:
            run(session, feeds)
        except ModelError as error:
            failure = failure or error
            continue
        return feeds
    dynamic = [s for s in specs.values() if not all(isinstance(d, int) for d in s.shape)]
    example = " ".join(f"--shape {s.name}={'x'.join(str(d) for d in _example(s))}" for s in dynamic)
    hint = f", or their sizes, such as {example}" if dynamic else ""
    raise UsageError(
        f"No random input that was tried runs the model; give some with --calibration{hint} ({failure})"
    )


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or not value.type.tensor_type.elem_type:
        what = (kind or "value without a type").removesuffix("_type").replace("_", " ")
        raise UsageError(f"Input '{value.name}' is a {what}: only models fed with tensors can be run here.")
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return InputSpec(value.name, dtype, tuple(_axis(d) for d in tensor.shape.dim))


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Return the size or name of an axis; exporters also write 0 or -1 for one they do not know."""
    if dim.dim_value > 0:
        return int(dim.dim_value)
    return dim.dim_param or None


def _resolve(
    specs: Mapping[str, InputSpec],
    shapes: Shapes,
    size: tuple[int, int],
    others: tuple[int, int] | None = None,
) -> dict[str, Shape]:
    """Return a full shape for every input; axes of the same name get the same size.

    `others` is the size for the inputs behind the first, when it is not `size`.
    """
    for name in shapes:
        if name not in specs:
            raise unknown_name("input", name, specs)
    known: dict[str, int] = {}
    for spec in specs.values():
        if spec.name in shapes:
            _check_given(spec, shapes[spec.name])
            known |= {a: n for a, n in zip(spec.shape, shapes[spec.name], strict=True) if isinstance(a, str)}
    for spec in specs.values():
        known |= {a: 1 for i, a in enumerate(spec.shape) if _is_batch(i, a) and a not in known}  # type: ignore[misc]
    resolved = {}
    for index, spec in enumerate(specs.values()):
        filled = _filled(spec, known, others if others and index else size)
        resolved[spec.name] = tuple(shapes.get(spec.name, filled))
    return resolved


def _filled(spec: InputSpec, known: dict[str, int], size: tuple[int, int]) -> Shape:
    free = [i for i, a in enumerate(spec.shape) if not isinstance(a, int) and a not in known and i > 0]
    sizes = dict(zip(reversed(free), reversed(size), strict=False))
    filled = []
    for index, axis in enumerate(spec.shape):
        if isinstance(axis, int):
            filled.append(axis)
        elif axis in known:
            filled.append(known[axis])
        else:
            filled.append(1 if index == 0 else sizes.get(index, CHANNELS))
            if axis is not None:
                known[axis] = filled[-1]
    return tuple(filled)


def _is_batch(index: int, axis: int | str | None) -> bool:
    return isinstance(axis, str) and (index == 0 or axis.lower() in BATCH_NAMES)


def _check_given(spec: InputSpec, shape: Shape) -> None:
    fits = len(shape) == len(spec.shape) and all(
        not isinstance(a, int) or a == n for a, n in zip(spec.shape, shape, strict=True)
    )
    if not fits or any(n < 1 for n in shape):
        raise UsageError(
            f"Shape {'x'.join(map(str, shape))} does not fit input '{spec.name}', which is {written(spec)}."
        )


def _random_values(spec: InputSpec, shape: Shape, seed: int) -> Array:
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    dtype = spec.dtype
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), bool)
    if dtype == np.uint8:
        return np.asarray(rng.integers(0, 256, shape), dtype)
    if dtype.kind in "iu":
        values = np.asarray(rng.integers(0, 2, shape), dtype)
        values.flat[:1] = 1  # an input of one number is a count or a mask, for which 0 means nothing
        return values
    if dtype.kind == "f" or dtype.name.startswith(("bfloat", "float")):
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "O":
        return np.asarray(rng.choice(np.array(WORDS, object), shape), object)
    raise UsageError(f"Input '{spec.name}' is of type {dtype.name}, for which there are no random values.")


def written(spec: InputSpec) -> str:
    """Return type and shape of an input as a message shows them, such as ``float32 Nx3x?x?``."""
    return f"{spec.dtype.name} {'x'.join('?' if a is None else str(a) for a in spec.shape) or 'scalar'}"


def _example(spec: InputSpec) -> Shape:
    return _filled(spec, {}, (48, 320))
