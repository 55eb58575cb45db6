"""Make a loss of what the user asked for and of what the models put out."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime.divergence import is_float
from onnxdecomp.runtime.session import Array
from onnxdecomp.tune.losses import (
    CrossEntropy,
    KullbackLeibler,
    MeanSquare,
    Objective,
    Term,
    default_loss,
    scores_of,
)
from onnxdecomp.tune.settings import AUTO, Settings, Weighted

Matches = Sequence[tuple[tuple[str, ...], float]]
"""Tensors that are matched together, with the weight of the mean over them."""


def build_objective(
    settings: Settings,
    references: Iterable[Mapping[str, Array]],
    outputs: Sequence[str],
    matches: Matches,
    *,
    has_teacher: bool,
) -> Objective:
    """Return the loss.

    Args:
        settings: `loss` and `temperature` count.
        references: What the teacher puts out on the samples set aside, batch by batch: outputs and matched
            tensors. Without a teacher, what the student puts out.
        outputs: Outputs of the models, in their order.
        matches: Intermediate tensors.
        has_teacher: Whether there is a teacher.

    Raises:
        UsageError: A loss does not suit the outputs, or needs a teacher and there is none.
        ModelError: Values of the teacher are not finite.
    """
    first, powers = first_and_powers(references)
    first = {name: first[name] for name in outputs}
    losses = [_named(term, default_loss(first, has_teacher=has_teacher)) for term in settings.losses]
    terms: list[tuple[float, Term]] = []
    names: list[str] = []
    for loss in losses:
        if loss.name != "cross-entropy" and not has_teacher:
            raise UsageError(f"loss {loss.name} compares with the original: give it with --teacher")
        term, needed = _term(loss.name, first, powers, settings)
        terms.append((loss.weight, term))
        names += needed
    for matched, weight in matches:
        if not has_teacher:
            raise UsageError("--match compares with the original: give it with --teacher")
        terms.append((weight, MeanSquare({name: power_of(name, powers) for name in matched})))
        names += matched
    title = " + ".join(
        [*(_written(loss.weight, loss.name) for loss in losses)]
        + [_written(weight, f"{len(matched)} tensors matched") for matched, weight in matches]
    )
    needs_labels = any(loss.name == "cross-entropy" for loss in losses)
    return Objective(tuple(terms), tuple(dict.fromkeys(names)), needs_labels, title)


def needs_labels(settings: Settings, *, has_teacher: bool) -> bool:
    """Tell whether a loss compares with labels, before anything is known of the outputs."""
    names = {term.name for term in settings.losses}
    return "cross-entropy" in names or (AUTO in names and not has_teacher)


def _named(term: Weighted, default: str) -> Weighted:
    return Weighted(default, term.weight) if term.name == AUTO else term


def _term(
    loss: str, first: Mapping[str, Array], powers: Mapping[str, float], settings: Settings
) -> tuple[Term, list[str]]:
    """Return a term on the outputs, and which of them it reads."""
    if loss == "mse":
        floats = [name for name, array in first.items() if is_float(np.asarray(array))]
        if not floats:
            raise UsageError(
                "loss mse compares numbers, and the model puts out no floating point: use others"
            )
        return MeanSquare({name: power_of(name, powers) for name in floats}), floats
    scores = scores_of(first, loss)
    if loss == "kl":
        return KullbackLeibler(scores, settings.temperature), [scores.name]
    return CrossEntropy(scores), [scores.name]


def first_and_powers(
    references: Iterable[Mapping[str, Array]],
) -> tuple[Mapping[str, Array], dict[str, float]]:
    """Return the tensors of the first batch, and the mean square of each over all batches.

    Raises:
        UsageError: There is no batch.
    """
    first: Mapping[str, Array] | None = None
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for reference in references:
        first = first or reference
        for name, array in reference.items():
            if is_float(np.asarray(array)):
                with np.errstate(all="ignore"):
                    total = float(np.square(np.asarray(array, np.float64)).sum())
                squares[name] = squares.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + array.size
    if first is None:
        raise UsageError("there are no samples to stop by: give more")
    return first, {name: squares[name] / max(counts[name], 1) or 1.0 for name in squares}


def power_of(name: str, powers: Mapping[str, float]) -> float:
    """Return the mean square of a tensor of the teacher.

    Raises:
        UsageError: It is not of floating point.
        ModelError: It is not finite.
    """
    if name not in powers:
        raise UsageError(f"tensor '{name}' is not of floating point: match others")
    if not np.isfinite(powers[name]):
        raise ModelError(
            f"tensor '{name}' of the teacher has values that are not finite, so nothing can come near it: "
            "choose another loss"
        )
    return powers[name]


def _written(weight: float, name: str) -> str:
    return name if weight == 1 else f"{weight:g} x {name}"
