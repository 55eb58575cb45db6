"""Compare a converted model with its original in onnxruntime."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path

import numpy as np
import onnx

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.constant_weights import overridable
from onnxdecomp.runtime.session import Array, Feeds, Model, open_session, read_proto, run

Outputs = dict[str, Array]

SAME_RESULT = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Relative difference up to which two ways to compute the same thing agree, by element type."""

STEP_AT_ONE = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from one to the next number, by element type."""

ROUNDING_STEPS = 4
"""Outputs nowhere further apart than so many steps at one count as equal: a probability of 1e-4 that comes
out of a sigmoid or softmax has few correct digits left, and no relative error says anything about it."""

NOISE_FACTOR = 10
"""How many times further than the original's a model's results may lie apart, optimizations off and on."""


def output_error(reference: Array, other: Array) -> float:
    """Return ``||a - b|| / ||a||`` over the entries where the reference `a` is finite.

    Returns:
        A relative error, never squared; `inf` when shapes differ or `b` is not finite where `a` is. Of
        outputs that are not numbers with a distance (integers, booleans, strings): the share that differs.
    """
    if np.shape(reference) != np.shape(other):
        return inf
    if not _is_float(reference):
        return float(np.mean(np.asarray(reference) != np.asarray(other))) if np.size(reference) else 0.0
    exact, close = (np.asarray(a, np.float64) for a in (reference, other))
    finite = np.isfinite(exact)
    if not np.all(np.isfinite(close[finite])):
        return inf
    distance = float(np.linalg.norm(exact[finite] - close[finite]))
    norm = float(np.linalg.norm(exact[finite]))
    return distance / norm if norm else (inf if distance else 0.0)


@dataclass
class ModelCheck:
    """What came out of comparing a converted model with its original.

    Args:
        problems: A sentence per thing that is wrong; empty when the converted model is fine.
        rel_errors: Relative error against the original of each output, the worst over the feeds.
        agreement: Largest relative difference between onnxruntime's optimizations off and on.
        tolerance: What `worst` may be; None when it is only reported.
        n_feeds: How many inputs were run.
    """

    problems: list[str] = field(default_factory=list)
    rel_errors: dict[str, float] = field(default_factory=dict)
    agreement: float = 0.0
    tolerance: float | None = None
    n_feeds: int = 0

    @property
    def worst(self) -> float:
        """The largest of `rel_errors`."""
        return max(self.rel_errors.values(), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_models(
    original: Model,
    converted: Model,
    feeds_list: Sequence[Feeds],
    *,
    tolerance: float | None = None,
    agreement_tolerance: float | None = None,
    threads: int = 1,
) -> ModelCheck:
    """Check that a converted model is valid, has the same interface and computes something close.

    One session is open at a time.

    Args:
        original: The original model, or its path.
        converted: The converted model, or its path.
        feeds_list: Inputs to run, each complete.
        tolerance: Largest relative error of any output against the original; None reports it only.
        agreement_tolerance: Largest relative difference between optimizations off and on; by default what
            is the same result for the outputs' element type, or a multiple of what the original shows.
        threads: Threads inside an operator.

    Raises:
        ModelError: onnxruntime cannot run the original.
    """
    check = ModelCheck(tolerance=tolerance, n_feeds=len(feeds_list))
    check.problems += _checker_problems(original, converted)
    check.problems += _interface_problems(original, converted)
    reference = _run_all(original, feeds_list, True, threads)
    try:
        optimized = _run_all(converted, feeds_list, True, threads)
        plain = _run_all(converted, feeds_list, False, threads)
    except ModelError as error:
        check.problems.append(f"The converted model does not run: {error}")
        return check
    check.problems += _kind_problems(reference, optimized, _fixed_shapes(original))
    check.rel_errors = _worst_errors(reference, optimized)
    check.agreement = _agreement(plain, optimized)
    limit = agreement_tolerance or _same_result(plain)
    apart = max(_worst_errors(reference, optimized, ROUNDING_STEPS).values(), default=0.0)
    split = _agreement(plain, optimized, ROUNDING_STEPS)
    noise = 0.0
    if not split <= limit or (tolerance is not None and not apart <= tolerance):
        noise = NOISE_FACTOR * _agreement(_run_all(original, feeds_list, False, threads), reference)
    if tolerance is not None and not apart <= max(tolerance, noise):
        name = max(check.rel_errors, key=check.rel_errors.__getitem__)
        check.problems.append(f"Output '{name}' is off by {check.worst:.3g}, more than {tolerance:.3g}.")
    if not split <= max(limit, noise):
        check.problems.append(
            f"With onnxruntime's optimizations off and on the converted model differs by "
            f"{check.agreement:.3g}, more than {max(limit, noise):.3g}."
        )
    return check


def _run_all(model: Model, feeds_list: Sequence[Feeds], optimize: bool, threads: int) -> list[Outputs]:
    session = open_session(model, optimize=optimize, threads=threads)
    return [dict(_tensors(run(session, feeds))) for feeds in feeds_list]


def _tensors(outputs: dict[str, Array]) -> Iterable[tuple[str, Array]]:
    """Yield every tensor of the outputs; those of a sequence as ``name[0]``, ``name[1]`` ..."""
    for name, value in outputs.items():
        if isinstance(value, list):
            yield from ((f"{name}[{n}]", np.asarray(v)) for n, v in enumerate(value))
        elif value is not None:
            yield name, np.asarray(value)


def _worst_errors(reference: Sequence[Outputs], other: Sequence[Outputs], steps: int = 0) -> dict[str, float]:
    """Return the worst error of each output; outputs nowhere further apart than `steps` count as equal."""
    worst: dict[str, float] = {}
    for expected, got in zip(reference, other, strict=True):
        for name, value in expected.items():
            error = output_error(value, got[name]) if name in got else inf
            if error and isfinite(error) and _is_float(value):
                distance = np.abs(np.asarray(value, np.float64) - np.asarray(got[name], np.float64))
                floor = steps * STEP_AT_ONE.get(str(value.dtype), 0.0)
                error = 0.0 if np.nanmax(distance) <= floor else error
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def _agreement(plain: Sequence[Outputs], optimized: Sequence[Outputs], steps: int = 0) -> float:
    """Return the worst error over the float outputs: a tie in an ArgMax may fall either way."""
    floats = [{name: y for name, y in outputs.items() if _is_float(y)} for outputs in plain]
    return max(_worst_errors(floats, optimized, steps).values(), default=0.0)


def _fixed_shapes(model: Model) -> dict[str, bool]:
    """Tell for each output whether its shape can only change by mistake, not by what the model finds."""
    fixed = {}
    for value in read_proto(model).graph.output:
        kind = value.type.tensor_type
        known = kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
        fixed[value.name] = known
    return fixed


def _kind_problems(
    reference: Sequence[Outputs], other: Sequence[Outputs], fixed: Mapping[str, bool]
) -> list[str]:
    """Return what is wrong with the outputs beside their numbers.

    A shape that the model leaves open may change in its sizes: a detector then found other things.
    """
    problems = []
    for expected, got in zip(reference, other, strict=True):
        for name, value in expected.items():
            if name not in got:
                problems.append(f"Output '{name}' is missing.")
            elif got[name].dtype != value.dtype:
                problems.append(f"Output '{name}' is {got[name].dtype} instead of {value.dtype}.")
            elif got[name].shape != value.shape:
                if fixed.get(name, False) or got[name].ndim != value.ndim:
                    problems.append(f"Output '{name}' has shape {got[name].shape} instead of {value.shape}.")
            elif not isfinite(output_error(value, got[name])):
                problems.append(f"Output '{name}' is not finite where the original's is.")
    return list(dict.fromkeys(problems))


def _same_result(outputs: Sequence[Outputs]) -> float:
    kinds = {str(value.dtype) for got in outputs for value in got.values()}
    return max((SAME_RESULT.get(kind, SAME_RESULT["float32"]) for kind in kinds), default=0.0)


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float"))


def _checker_problems(original: Model, converted: Model) -> list[str]:
    if _checker_complaint(original) is not None:
        return []
    complaint = _checker_complaint(converted)
    return [] if complaint is None else [f"The ONNX checker refuses the converted model: {complaint}"]


def _checker_complaint(model: Model) -> str | None:
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        return " ".join(str(error).split())
    return None


def _interface_problems(original: Model, converted: Model) -> list[str]:
    before, after = read_proto(original).graph, read_proto(converted).graph
    constant = overridable(before) - {value.name for value in after.input}  # a caller may not override it now
    inputs = [value for value in before.input if value.name not in constant]
    problems = []
    for kind, expected, got in (("input", inputs, after.input), ("output", before.output, after.output)):
        names, new_names = [v.name for v in expected], [v.name for v in got]
        if names != new_names:
            problems.append(f"The {kind}s are called {new_names} instead of {names}.")
            continue
        problems += [
            f"The declared type or shape of {kind} '{a.name}' changed."
            for a, b in zip(expected, got, strict=True)
            if a.type != b.type
        ]
    return problems
