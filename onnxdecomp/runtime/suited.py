"""Which metric suits the outputs of a model where nobody names one."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxdecomp.runtime.divergence import (
    are_class_scores,
    are_embeddings,
    are_probabilities,
    first_output,
    is_float,
    looks_like_class_scores,
)
from onnxdecomp.runtime.evaluate import METRICS, Metric, Outputs
from onnxdecomp.runtime.power import signal_powers
from onnxdecomp.runtime.session import Array

LEAST_VARYING = 0.5
"""Share of the power of outputs that varies between samples, below which what does not is left out."""


MAX_NAMED = 4
"""Outputs that a sentence names, before it says how many more there are."""


def suited_metrics(
    reference: Outputs, labels: Array | None, numbers: Collection[str] = ()
) -> dict[str, Metric]:
    """Return the metric of each output that is compared where nobody names one, by name of the output.

    With labels that is the first one alone; else all of them that are tensors of finite numbers, and the
    first whatever it is. Of several with rows for the same places, as detectors have them, only probabilities
    are taken for classes: the others may be boxes.

    Args:
        reference: Outputs of the original.
        labels: Of the samples; None where there are none.
        numbers: Outputs that are known to be no scores of classes.
    """
    (first, _), *_ = reference.items()
    if labels is not None:
        return {first: METRICS["top1"]}
    compared = {name: array for name, array in reference.items() if name == first or _is_comparable(array)}
    places = Counter(np.shape(array)[1] for array in compared.values() if np.ndim(array) == 3)
    found = {}
    for name, array in compared.items():
        at_places = np.ndim(array) == 3 and is_float(array) and places[np.shape(array)[1]] > 1
        is_numbers = name in numbers or (at_places and not are_probabilities(array))
        found[name] = METRICS[_of_numbers(array) if is_numbers else default_metric({name: array})]
    return found


def default_metric(reference: Outputs) -> str:
    """Return the metric that suits the first output, where there are no labels.

    That is ``cosine`` where it is vectors of length 1, as embeddings are; ``agreement`` where it looks like
    class scores of which not nearly always the same one is highest, or is whole numbers, which are a choice
    themselves; else ``sqnr``, or ``r2`` where most of the output is the same for all samples.
    """
    first = np.asarray(first_output(reference))
    if looks_like_class_scores(reference) and are_embeddings(first):
        return "cosine"
    if first.dtype.kind in "biu" or are_class_scores(reference):
        return "agreement"
    return _of_numbers(first)


def _of_numbers(output: Array) -> str:
    """Return the metric that compares an output as numbers."""
    return "r2" if is_float(output) and _hardly_varies(output) else "sqnr"


def described(metrics: Mapping[str, Metric]) -> str:
    """Return what a loss is counted in, for a sentence: a metric, or several of which the worst counts."""
    if len(metrics) == 1:
        return next(iter(metrics.values())).name
    return f"the output that loses most ({_by_what(metrics)})"


def notes_on(
    metrics: Mapping[str, Metric],
    names: Sequence[str],
    reference: Outputs,
    *,
    is_guessed: bool,
    counted: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return what is to be said of how outputs are compared.

    Args:
        metrics: The metric of each output that is compared.
        names: All outputs of the model, or what stands for them.
        reference: Outputs of the original that can be compared.
        is_guessed: Whether nobody named a metric, and there are no labels.
        counted: What stands for outputs with as many rows as something is found, by their names.
    """
    (first, measure), *others = metrics.items()
    found = []
    if counted:
        counts = [f"'{name}'" for name in counted]
        made_of = list(dict.fromkeys(f"'{name}'" for names in counted.values() for name in names))
        found.append(
            f"{_listed(counts)}: as many rows as something is found. What it is found in is compared "
            f"instead: {_listed(made_of)}."
        )
    if others:
        found.append(
            "Each output is compared by what seems to suit it, and the one that loses most counts: "
            f"{_by_what(metrics)}. --metric compares the first alone, or all by a function of your own."
        )
    left = _listed([f"'{name}'" for name in names if name not in metrics])
    if left and is_guessed:
        found.append(
            f"What {left} loses is not measured: there is no row for each sample, or a value is not finite."
        )
    elif left and measure.compares != "anything":
        found.append(
            f"Metric {measure.name} looks at '{first}' alone, the first output. What {left} loses is not "
            "measured: a function of your own, --metric package.module:function, sees all outputs."
        )
    doubt = doubt_of_default(reference, measure.name) if is_guessed and not others else None
    return found + ([doubt] if doubt else [])


def _by_what(metrics: Mapping[str, Metric]) -> str:
    return _listed([f"'{name}' by {measure.name}" for name, measure in metrics.items()])


def _listed(texts: Sequence[str]) -> str:
    """Return some texts one after the other, and how many more there are.

    >>> _listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return ", ".join(texts[:MAX_NAMED]) + more


def _is_comparable(output: Array) -> bool:
    """Tell whether an output is a tensor of finite numbers."""
    if not isinstance(output, np.ndarray) or not output.size:
        return False
    return output.dtype.kind in "biu" or (
        is_float(output) and bool(np.all(np.isfinite(np.asarray(output, np.float64))))
    )


def compares_classes(measure: Metric, reference: Outputs) -> bool:
    """Tell whether a metric takes the first output for class scores."""
    return measure.compares != "numbers" and looks_like_class_scores(reference)


def _hardly_varies(output: Array) -> bool:
    """Tell whether most of an output ``(n, ...)`` is the same for all samples, but not all of it."""
    samples = np.atleast_1d(output)
    varies, power = (
        float(signal_powers(samples, of_variance=of_variance, finite_only=True).sum())
        for of_variance in (True, False)
    )
    return 0 < varies < LEAST_VARYING * power


def doubt_of_default(reference: Outputs, found: str) -> str | None:
    """Return what to say where `default_metric` took for numbers what might be scores of classes.

    Args:
        reference: Outputs of the original, which came without labels.
        found: The metric that `default_metric` returned for them.
    """
    (name, first), *_ = reference.items()
    if found not in ("sqnr", "r2") or not looks_like_class_scores(reference):
        return None
    n_classes = np.shape(first)[-1]
    return (
        f"Output '{name}' was taken for numbers, not for scores of {n_classes} classes: none of them stands "
        f"out, or nearly always the same one, or they are of different kinds. {found} compares them; if they "
        "are scores, say --metric agreement."
    )
