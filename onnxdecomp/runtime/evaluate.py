"""How good a model's outputs are: one number per model, higher is better."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal

import numpy as np

from onnxdecomp.errors import ModelError, UsageError, unknown_name
from onnxdecomp.runtime.in_order import in_order
from onnxdecomp.runtime.outputs import open_outputs
from onnxdecomp.runtime.parts import Part
from onnxdecomp.runtime.power import noise_powers, signal_powers
from onnxdecomp.runtime.rows import by_sample, samples_first
from onnxdecomp.runtime.samples import LABELS, batch_sizes, batches, load_function
from onnxdecomp.runtime.session import Array, Model, open_session, read_proto, run

Outputs = Mapping[str, Array]
Score = Callable[[Outputs, Array | None, Outputs], float]
"""(outputs, labels, outputs of the original) -> a number, higher is better. Samples are on axis 0."""

LIMIT_DB = 100.0
"""What `psnr` and `sqnr` say of equal signals, so that a drop stays a number."""

BATCH = 32
"""Samples run at once where the model allows it."""


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Args:
        name: Its name on the command line.
        score: What computes it.
        needs_labels: Whether it compares with labels.
        compares: What it compares of the first output: which entry is the highest, as a share of right ones,
            or numbers, whatever they may look like. A function of the user's compares what it likes to.
        is_mean: Whether it is a mean over samples, each of which has a score of its own.
        part: What it looks at of an output; None looks at all of it.
    """

    name: str
    score: Score
    needs_labels: bool = False
    compares: Literal["choices", "numbers", "anything"] = "anything"
    is_mean: bool = False
    part: Part | None = None

    def output_of(self, name: str) -> str:
        """Return the output that what is compared under a name is part of, or is."""
        return self.part.output if self.part else name

    def seen_of(self, name: str, outputs: Outputs) -> Array:
        """Return what is compared under a name."""
        output = outputs[self.output_of(name)]
        return self.part.of(output) if self.part else output


def metric(name: str) -> Metric:
    """Return the metric called `name`, or the function that ``package.module:function`` names.

    Such a function gets (outputs by name, labels or None, outputs of the original) and returns a number.

    Raises:
        UsageError: There is no such metric.
    """
    if ":" in name:
        return Metric(name, _own(name, load_function(name)))
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def _own(name: str, function: Score) -> Score:
    """Return a function of the user whose exceptions become a sentence."""

    def score(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
        try:
            return function(outputs, labels, reference)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"Metric {name} failed with {type(error).__name__}: {error}. It is called with the outputs "
                "by name, the labels or None, and the outputs of the original, and has to return a number."
            ) from error

    return score


def labels_missing(name: str) -> UsageError:
    """Return the error for a metric that compares with labels where there are none."""
    return UsageError(
        f"Metric {name} needs an array '{LABELS}' beside the inputs: give such a file with --eval, or choose "
        "agreement, which compares with the original's choices."
    )


def outputs_over(
    model: Model,
    samples: Mapping[str, Array],
    *,
    names: Sequence[str] | None = None,
    threads: int = 1,
    batch: int = BATCH,
    jobs: int = 1,
) -> dict[str, Array]:
    """Run a model on every sample and return its outputs, joined along axis 0, the axis of the samples.

    The first output has to allow that; others that do not are left out. Where an output has several rows for
    each sample, as a model for a single one may have for its places, these become an axis of their own, and
    samples on axis 1, as recurrent networks have them behind steps or layers, come first. One with any other
    number of rows says nothing of samples.

    The batches are the same for any number of jobs, so the outputs are too, bit for bit. Those of other
    threads or other batches may differ in the last bits.

    Args:
        model: The model or its path.
        samples: As `load_samples` returns them.
        names: Tensors of the main graph to put out instead of the outputs.
        threads: Threads inside an operator.
        batch: Samples run at once where the model allows it.
        jobs: Batches run side by side; each takes the memory of one run.

    Raises:
        UsageError: There are too few samples.
        ModelError: onnxruntime cannot run the model on them, or its first output has no row for each sample.
    """
    if names is None:
        session = open_session(model, threads=threads)
    else:
        session = open_outputs(model, names, threads=threads)
    proto = read_proto(model)
    parts = list(in_order(partial(run, session), batches(samples, proto, batch), jobs))
    return all_joined(parts, batch_sizes(samples, proto, batch))


def evaluate(
    model: Model,
    samples: Mapping[str, Array],
    measure: Metric,
    *,
    reference: Outputs,
    names: Sequence[str] | None = None,
    threads: int = 1,
    batch: int = BATCH,
) -> float:
    """Return the score of a model on samples.

    Args:
        model: The model or its path.
        samples: As `load_samples` returns them, with ``labels`` where the metric needs them.
        measure: The metric.
        reference: Outputs of the original on the same samples, from `outputs_over`.
        names: As `outputs_over` takes them.
        threads: Threads inside an operator.
        batch: Samples run at once where the model allows it.

    Raises:
        UsageError: The metric needs labels and there are none, or does not suit the model's outputs.
    """
    labels = samples.get(LABELS)
    if measure.needs_labels and labels is None:
        raise labels_missing(measure.name)
    outputs = outputs_over(model, samples, names=names, threads=threads, batch=batch)
    if labels is not None:
        labels = labels[: len(_first(outputs))]  # the last samples may not have filled a fixed batch
    return float(measure.score(outputs, labels, reference))


def top1(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """Return the share of samples whose largest entry of the first output is at the label."""
    if labels is None:
        raise labels_missing("top1")
    chosen = _classes(outputs)
    if chosen.shape != labels.shape:
        raise UsageError(
            f"Labels of shape {labels.shape} do not fit the model's {chosen.shape} choices: top1 takes the "
            "number of the class of each."
        )
    return float(np.mean(chosen == labels))


def agreement(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """Return the share of samples (and positions) on which the first output chooses as the original does."""
    return float(np.mean(_classes(outputs) == _classes(reference)))


def cosine(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """Return the mean cosine between each sample's first output and the original's."""
    ours, theirs = _rows(outputs), _rows(reference)  # (n, values)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    same = np.all(ours == theirs, axis=1)
    products = np.sum(ours * theirs, axis=1)
    return float(np.mean(np.where(same, 1.0, products / np.where(norms > 0, norms, 1.0))))


def psnr(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """Return the peak signal-to-noise ratio of the first output in dB, at most `LIMIT_DB`.

    The truth is `labels` where there are some, else the original's output; the peak is the range of its
    values.
    """
    ours, theirs = _rows(outputs), _rows(reference)
    truth = theirs
    if labels is not None:
        if labels.size != ours.size:
            raise UsageError(f"Metric psnr has {labels.size} true values for {ours.size} of the model.")
        truth = np.asarray(labels, np.float64).reshape(ours.shape)
    return _decibels(float(np.ptp(truth)) ** 2, float(np.mean(np.square(ours - truth))))


def sqnr(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """Return the signal of the original's first output over what changed, in dB, at most `LIMIT_DB`.

    Values that are not finite in the original are left out.
    """
    ours, theirs = np.atleast_1d(_first(outputs)), np.atleast_1d(_first(reference))
    signal = signal_powers(theirs, finite_only=True)
    return _decibels(float(signal.sum()), float(noise_powers(ours, theirs, finite_only=True).sum()))


def r2(outputs: Outputs, labels: Array | None, reference: Outputs) -> float:
    """Return the coefficient of determination of the first output: 1 - what changed over the variance.

    The truth is the original's output, and the variance is that of each of its values over the samples: what
    is the same for all samples says nothing.
    """
    ours, theirs = np.atleast_1d(_first(outputs)), np.atleast_1d(_first(reference))
    noise, signal = noise_powers(ours, theirs).sum(), signal_powers(theirs, of_variance=True).sum()
    return float(1.0 - noise / signal) if signal > 0 else float(noise == 0.0)


METRICS = {
    found.name: found
    for found in (
        Metric("top1", top1, needs_labels=True, compares="choices", is_mean=True),
        Metric("agreement", agreement, compares="choices", is_mean=True),
        Metric("cosine", cosine, compares="numbers", is_mean=True),
        Metric("psnr", psnr, compares="numbers"),
        Metric("sqnr", sqnr, compares="numbers"),
        Metric("r2", r2, compares="numbers"),
    )
}


def _first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _classes(outputs: Outputs) -> Array:
    """Return the class chosen: along axis 1 of (n, C) and (n, C, *spatial), the last of (n, steps, C).

    An output of integers, or of one number a sample, is the choice itself.
    """
    first = _first(outputs)
    if first.ndim < 2 or first.dtype.kind in "biu":
        return first
    return np.asarray(np.argmax(np.asarray(first, np.float64), axis=2 if first.ndim == 3 else 1))


def _rows(outputs: Outputs) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    first = np.atleast_1d(np.asarray(_first(outputs), np.float64))
    return first.reshape(len(first), -1)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return LIMIT_DB
    if not isfinite(noise):
        return -LIMIT_DB
    return min(LIMIT_DB, 10.0 * float(np.log10(signal / noise))) if signal > 0 else -LIMIT_DB


def all_joined(parts: Sequence[Outputs], sizes: Sequence[int] | None) -> dict[str, Array]:
    """Return outputs of several runs, joined as `outputs_over` returns them.

    Args:
        parts: Of each run.
        sizes: Samples of each run; None where rows are no samples.

    Raises:
        ModelError: The shapes of the first do not allow it.
    """
    first, *others = parts[0]
    if sizes is not None:
        parts = [
            {name: samples_first(array, size) for name, array in part.items()}
            for part, size in zip(parts, sizes, strict=True)
        ]
    found = {first: joined(first, [part[first] for part in parts])}
    for name in others:
        try:
            found[name] = joined(name, [part[name] for part in parts])
        except ModelError:
            continue
    if sizes is None:
        return found
    split = by_sample(found, sum(sizes))
    if first not in split:
        raise ModelError(
            f"Output '{first}' has {_n_rows(found[first])} rows for {sum(sizes)} samples, which says nothing "
            "of single ones. Where axis 0 of the model's inputs is not one of samples, give each sample as a "
            "whole input: arrays with one axis more. Without --metric and labels what is counted in it is "
            "compared, where that is known; a conversion without --calibration goes by the weights alone."
        )
    return split


def _n_rows(output: Array) -> int:
    return len(output) if np.ndim(output) else 1


def joined(name: str, parts: list[Array]) -> Array:
    """Return the parts of output `name` joined along axis 0.

    Raises:
        ModelError: Their shapes do not allow it.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        return np.concatenate([np.atleast_1d(part) if np.ndim(part) == 0 else part for part in parts])
    except ValueError as error:
        shapes = ", ".join(list(dict.fromkeys(str(np.shape(part)) for part in parts))[:3])
        raise ModelError(
            f"Output '{name}' cannot be joined over the samples: it has shapes {shapes}. Give "
            "samples for which it is the same, or none (without --calibration the weights alone decide)."
        ) from error
