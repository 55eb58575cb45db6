"""Which metric suits the outputs of a model where nobody names one."""

import numpy as np

from onnxdecomp.runtime.divergence import (
    are_class_scores,
    are_embeddings,
    are_probabilities,
    first_output,
    is_float,
    looks_like_class_scores,
)
from onnxdecomp.runtime.evaluate import Metric, Outputs, varying
from onnxdecomp.runtime.session import Array

LEAST_VARYING = 0.5
"""Share of the power of outputs that varies between samples, below which what does not is left out."""


def default_metric(reference: Outputs, labels: Array | None) -> str:
    """Return the metric for users who name none.

    That is ``top1`` with labels; else ``cosine`` where the first output is vectors of length 1, as embeddings
    are; ``agreement`` where it looks like class scores, not always the same one of which stands out, or is
    whole numbers, which are a choice themselves; else ``sqnr``, or ``r2`` where most of the output is the
    same for all samples.
    """
    if labels is not None:
        return "top1"
    first = np.asarray(first_output(reference))
    if looks_like_class_scores(reference) and are_embeddings(first):
        return "cosine"
    if first.dtype.kind in "biu" or are_class_scores(reference):
        return "agreement"
    return "r2" if is_float(first) and _hardly_varies(first) else "sqnr"


def compares_classes(measure: Metric, reference: Outputs) -> bool:
    """Tell whether a metric takes the first output for class scores."""
    return measure.compares != "numbers" and looks_like_class_scores(reference)


def _hardly_varies(output: Array) -> bool:
    """Tell whether most of an output ``(n, ...)`` is the same for all samples, but not all of it."""
    values = np.atleast_1d(np.asarray(output, np.float64))
    rows = values.reshape(len(values), -1)
    finite = rows[:, np.all(np.isfinite(rows), axis=0)]
    varies, power = float(np.square(varying(finite)).sum()), float(np.square(finite).sum())
    return 0 < varies < LEAST_VARYING * power


def doubt_of_default(reference: Outputs, found: str) -> str | None:
    """Return what to say where `default_metric` may have taken for classes what is something else, or not.

    Numbers of which none is negative, and which are no probabilities, may be boxes of a detector; scores of
    which none stands out may be those of an unusual classifier.

    Args:
        reference: Outputs of the original, which came without labels.
        found: The metric that `default_metric` returned for them.
    """
    (name, first), *_ = reference.items()
    first = np.asarray(first)
    if found in ("sqnr", "r2") and looks_like_class_scores(reference):
        return (
            f"Output '{name}' was taken for {first.shape[-1]} numbers, not for scores of as many classes: "
            f"none of them stands out, or always the same one. {found} compares them; if they are scores, "
            "say --metric agreement."
        )
    if found != "agreement" or first.ndim != 3 or not is_float(first):
        return None
    if float(first.min()) < 0 or are_probabilities(first):
        return None
    _, n_places, n_classes = first.shape
    return (
        f"Output '{name}' was taken for scores of {n_classes} classes at {n_places} places, and agreement "
        "asks which is the highest at each. If it is something else, as boxes of a detector are, say with "
        "--metric how it is compared: sqnr, or a function of your own, package.module:function."
    )
