"""Which metric suits the outputs of a model where nobody names one."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from math import sqrt

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
from onnxdecomp.runtime.parts import parts_of
from onnxdecomp.runtime.power import signal_powers
from onnxdecomp.runtime.session import Array

LEAST_VARYING = 0.5
"""Share of the power of outputs that varies between samples, below which what does not is left out."""

ALIKE = 1e-4
"""The same share, below which samples tell the model apart from a constant by next to nothing."""


def suited_metrics(
    reference: Outputs, labels: Array | None, likely_numbers: Collection[str] = ()
) -> dict[str, Metric]:
    """Return the metric of each output that is compared where nobody names one, by name of the output.

    With labels that is the first one alone; else all of them that are tensors of finite numbers, and the
    first whatever it is. Of several for the same places, as detectors have them, rows or a number for each,
    only probabilities are taken for classes: the others may be boxes. Numbers of different kinds side by side
    in one output are compared kind by kind, as if they were outputs.

    Args:
        reference: Outputs of the original.
        labels: Of the samples; None where there are none.
        likely_numbers: Outputs that are scores of classes at the most where they are probabilities.
    """
    (first, _), *_ = reference.items()
    if labels is not None:
        return {first: METRICS["top1"]}
    compared = {name: array for name, array in reference.items() if name == first or _is_comparable(array)}
    likely = _at_shared_places(compared).union(likely_numbers)
    found: dict[str, Metric] = {}
    for name, array in compared.items():
        is_numbers = name in likely and is_float(array) and not are_probabilities(array)
        suited = _of_numbers(array) if is_numbers else default_metric({name: array})
        parts = parts_of(name, array) if suited in ("sqnr", "r2") and is_float(np.asarray(array)) else []
        for part in parts:
            found[str(part)] = replace(METRICS[_of_numbers(part.of(array))], part=part)
        if not parts:
            found[name] = METRICS[suited]
    return found


def _at_shared_places(outputs: Outputs) -> set[str]:
    """Return which outputs, rows ``(n, places, C)`` or numbers ``(n, places)``, share places with rows."""
    at: defaultdict[int, list[str]] = defaultdict(list)
    for name, array in outputs.items():
        if np.ndim(array) in (2, 3):
            at[np.shape(array)[1]].append(name)
    shared = [names for names in at.values() if len(names) > 1]
    return {name for names in shared if any(np.ndim(outputs[n]) == 3 for n in names) for name in names}


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
    return 0 < _share_varying(output) < LEAST_VARYING


def _share_varying(output: Array) -> float:
    """Return the share of the power of an output ``(n, ...)`` that varies between samples."""
    samples = np.atleast_1d(output)
    varies, power = (
        float(signal_powers(samples, of_variance=of_variance, finite_only=True).sum())
        for of_variance in (True, False)
    )
    return varies / power if power else 0.0


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
        f"out, or nearly always the same one, or they are of different kinds or of places. {found} compares "
        "them; if they are scores, say --metric agreement."
    )


def doubt_of_samples(reference: Outputs) -> str | None:
    """Return what to say where the outputs of the original are nearly the same for all samples."""
    arrays = [array for array in reference.values() if isinstance(array, np.ndarray) and is_float(array)]
    outputs = [np.atleast_1d(array) for array in arrays]
    share = max((_share_varying(output) for output in outputs if len(output) > 1), default=1.0)
    if share >= ALIKE:
        return None
    return (
        f"The model puts out nearly the same for all samples: its outputs differ by {sqrt(share):.2%}. Check "
        "that samples are preprocessed as it expects."
    )
