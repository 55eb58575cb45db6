"""How much a changed model lost against the original on samples, with the standard error of that.

Both models see the same samples, so errors are paired: only what differs between the two makes a drop
uncertain. A broken output, NaN or infinite where the original's is not, counts as wrong or as an infinite
drop.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from math import inf, isfinite, nan, sqrt

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.beliefs import Beliefs
from onnxdecomp.runtime.divergence import (
    Divergence,
    broken_rows,
    first_output,
    is_float,
    logs_for,
    looks_like_class_scores,
    noise_over_signal,
)
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.runtime.evaluate import LIMIT_DB, Metric, Outputs, labels_missing
from onnxdecomp.runtime.margins import Margins
from onnxdecomp.runtime.power import blocks, noise_powers, signal_powers, values_of
from onnxdecomp.runtime.rows import Rows, part
from onnxdecomp.runtime.session import Array
from onnxdecomp.runtime.suited import compares_classes

FloatArray = NDArray[np.float64]

BLOCKS = 20
"""Blocks of samples, at most, that are left out in turn to see how much a score depends on them."""


class Judge:
    """Compares outputs of changed models with those of the original on one part of the data.

    Args:
        measure: The metric.
        reference: Outputs of the original, samples on axis 0.
        labels: One for each of these samples; None where there are none. `drop` may need them.
        weights: What each sample counts for in a divergence (`Divergence`).
        alike: Returns outputs of the original on more samples like these, for what agreement is by margins.

    Raises:
        UsageError: There are not as many labels as samples, or the metric does not fit the outputs.
    """

    def __init__(
        self,
        measure: Metric,
        reference: Outputs,
        labels: Array | None,
        weights: FloatArray | None = None,
        alike: Callable[[], Outputs] | None = None,
    ) -> None:
        self._measure, self._reference, self._labels = measure, reference, labels
        self._alike = alike
        self._divergence = Divergence(
            reference,
            weights,
            as_classes=compares_classes(measure, reference),
            up_to_factor=measure.compares == "choices",
            of_variance=measure.compares == "numbers" and measure.name == "r2",
        )
        self.n_samples = len(np.atleast_1d(np.asarray(first_output(reference))))
        if not self.n_samples:
            raise UsageError("The original was run on no samples: give at least one.")
        if labels is not None and len(labels) != self.n_samples:
            raise UsageError(
                f"There are {len(labels)} labels for {self.n_samples} samples that the model was run on: "
                "give one label per sample, and whole batches where the model's batch is fixed."
            )
        if labels is None and measure.needs_labels:
            return
        if measure.compares != "anything":
            _check_fit(measure, reference, labels)
        self._before = self._score(reference)
        if not isfinite(self._before):
            raise UsageError(
                f"Metric {measure.name} is {self._before} for the original itself: choose another metric."
            )

    def drop(self, outputs: Outputs) -> Drop:
        """Return how much worse the outputs of a changed model are.

        Means over samples have the paired standard error, for shares
        ``sqrt((p10 + p01 - value**2) / n)`` with the shares p10 and p01 of samples that only one of the two
        gets right. That of psnr, sqnr and r2 is of the jackknife over samples, that of a function of the user
        of the jackknife over `BLOCKS` blocks.

        Args:
            outputs: On the same samples as the reference, in the same order.

        Raises:
            UsageError: The metric needs labels and there are none, or cannot compare these outputs.
        """
        if self._labels is None and self._measure.needs_labels:
            raise labels_missing(self._measure.name)
        if self._measure.compares == "anything":
            return self._drop_of_whole(outputs)
        (name, theirs), ours = next(iter(self._reference.items())), first_output(outputs)
        if np.shape(ours) != np.shape(theirs):
            raise UsageError(
                f"Output '{name}' has shape {np.shape(ours)}, that of the original {np.shape(theirs)}: "
                f"metric {self._measure.name} compares them sample by sample."
            )
        return self._drop_of_means(outputs) if self._measure.is_mean else self._drop_of_noise(outputs)

    def divergence(self, outputs: Outputs) -> float:
        """Return how far outputs are from the original's: see `Divergence`. Takes no labels."""
        return self._divergence.of(outputs)

    def _drop_of_means(self, outputs: Outputs) -> Drop:
        after = self._scores(outputs)  # (n,)
        lost = self._scores_before - after  # (n,)
        drop = Drop(
            *self._mean(lost),
            float(self._scores_before.mean()),
            float(after.mean()),
            self.n_samples,
            counted=self._measure.compares == "choices",
        )
        if self._beliefs is not None:
            chosen = np.where(self._broken(outputs), -1, np.argmax(first_output(outputs), axis=1))
            smoothed, error = self._mean(self._beliefs.lost(chosen))
            return replace(drop, smoothed=smoothed, smoothed_error=error, is_ceiling=True)
        if self._margins is not None:
            smoothed, error = self._margins.changed(self._logs(outputs))
            return replace(drop, smoothed=smoothed, smoothed_error=error)
        return drop

    def _mean(self, lost: FloatArray) -> tuple[float, float]:
        """Return the mean over samples, and its standard error."""
        return float(lost.mean()), float(lost.std()) / sqrt(self.n_samples)

    @cached_property
    def _beliefs(self) -> Beliefs | None:
        """What the original believes of the classes, where every sample has a label of one."""
        labels = self._labels
        if self._measure.name != "top1" or labels is None or not is_choice(self._reference):
            return None
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or int(labels.min()) < 0:
            return None
        return Beliefs(self._logs(self._reference), labels)

    @cached_property
    def _margins(self) -> Margins | None:
        """The original's margins, where agreement is asked for and each sample has scores of classes."""
        if self._measure.name != "agreement" or not is_choice(self._reference):
            return None
        more = None if self._alike is None else self._of_classes(self._alike())
        return Margins(self._logs(self._reference), more)

    def _logs(self, outputs: Outputs) -> FloatArray:
        """Return logarithms of class probabilities, ``(n, C)``; rows that are broken are NaN."""
        logs = self._of_classes(outputs)
        logs[self._broken(outputs)] = nan
        return logs

    def _of_classes(self, outputs: Outputs) -> FloatArray:
        """Return logarithms of probabilities of scores, of any samples."""
        with np.errstate(all="ignore"):
            return logs_for(first_output(self._reference))(np.asarray(first_output(outputs), np.float64))

    def _drop_of_noise(self, outputs: Outputs) -> Drop:
        if np.any(self._broken(outputs)):
            return Drop(inf, 0.0, self._before, nan, self.n_samples)
        after = self._score(outputs)
        if self._measure.name in ("sqnr", "r2"):
            own, other = (np.atleast_1d(first_output(found)) for found in (outputs, self._reference))
            sums = np.stack([noise_powers(own, other), self._signal_powers])  # (2, n)
            value = float(noise_over_signal(*sums.sum(1)))
            error = _jackknife(noise_over_signal(*_left_out(sums)))
        else:
            ours, theirs = _rows(outputs), _rows(self._reference)  # (n, values)
            truth = theirs if self._labels is None else _rows({"": self._labels}).reshape(ours.shape)
            sums = np.stack([np.square(rows - truth).mean(1) for rows in (theirs, ours)])  # (2, n)
            value = self._before - after
            means = _left_out(sums) / max(self.n_samples - 1, 1)
            error = _jackknife(np.subtract(*_decibels(float(np.ptp(truth)), means)))
        return Drop(value, error, self._before, after, self.n_samples)

    def _drop_of_whole(self, outputs: Outputs) -> Drop:
        after = self._score(outputs)
        if not isfinite(after):
            return Drop(inf, 0.0, self._before, after, self.n_samples)
        error = inf
        lengths = {np.shape(array)[:1] for array in (*outputs.values(), *self._reference.values())}
        if lengths == {(self.n_samples,)}:
            error = _jackknife(self._rests_before - [self._score(outputs, rows) for rows in self._rests])
        return Drop(self._before - after, error, self._before, after, self.n_samples)

    @cached_property
    def _signal_powers(self) -> FloatArray:
        """What noise is put in relation to, of each sample, ``(n,)``."""
        reference = np.atleast_1d(first_output(self._reference))
        return signal_powers(reference, of_variance=self._measure.name == "r2")

    @cached_property
    def _scores_before(self) -> FloatArray:
        return self._scores(self._reference)

    @cached_property
    def _rests(self) -> list[Rows]:
        """The samples without each block in turn. Blocks are drawn, since samples may be sorted by class."""
        order = np.random.default_rng(0).permutation(self.n_samples)
        blocks = np.array_split(order, min(BLOCKS, self.n_samples))
        return [np.setdiff1d(order, block) for block in blocks] if len(blocks) > 1 else []

    @cached_property
    def _rests_before(self) -> FloatArray:
        return np.array([self._score(self._reference, rows) for rows in self._rests])

    def _scores(self, outputs: Outputs) -> FloatArray:
        """Return the score of each sample, 0 where its output is broken, ``(n,)``."""
        ours, theirs, labels = first_output(outputs), first_output(self._reference), self._labels
        alone = []
        with np.errstate(all="ignore"):
            for row in (slice(start, start + 1) for start in range(self.n_samples)):
                truth = None if labels is None else labels[row]
                alone.append(self._measure.score({"": ours[row]}, truth, {"": theirs[row]}))
        return np.where(self._broken(outputs), 0.0, np.array(alone))

    def _broken(self, outputs: Outputs) -> NDArray[np.bool_]:
        """Tell of each sample whether its first output is NaN or infinite where the original's is not."""
        ours, theirs = (np.atleast_1d(first_output(found)) for found in (outputs, self._reference))
        every = blocks(self.n_samples, theirs.size // self.n_samples)
        return np.concatenate([broken_rows(values_of(ours[rows]), values_of(theirs[rows])) for rows in every])

    def _score(self, outputs: Outputs, rows: Rows | None = None) -> float:
        labels, reference = self._labels, self._reference
        if rows is not None:
            outputs, reference = part(outputs, rows), part(reference, rows)
            labels = None if labels is None else labels[rows]
        with np.errstate(all="ignore"):
            found = self._measure.score(outputs, labels, reference)
        try:
            return float(found)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"Metric {self._measure.name} returned a {type(found).__name__}: it has to return a number."
            ) from error


def is_choice(outputs: Outputs) -> bool:
    """Tell whether the first output has a score for each class and sample, ``(n, C)``."""
    return np.ndim(first_output(outputs)) == 2 and looks_like_class_scores(outputs)


def _rows(outputs: Outputs) -> FloatArray:
    """Return the first output in float64, ``(n, values)``."""
    first = np.atleast_1d(np.asarray(first_output(outputs), np.float64))
    return first.reshape(len(first), -1)


def _check_fit(measure: Metric, outputs: Outputs, labels: Array | None) -> None:
    """Refuse what is no tensor of numbers, a choice without alternatives, and labels of unknown classes."""
    (name, first), *_ = outputs.items()
    if not isinstance(first, np.ndarray) or not (is_float(first) or first.dtype.kind in "biu"):
        raise UsageError(
            f"Output '{name}' is no tensor of numbers, which metric {measure.name} needs: name a function of "
            "your own, package.module:function."
        )
    if measure.compares != "choices" and not np.all(np.isfinite(np.asarray(first, np.float64))):
        raise UsageError(
            f"Output '{name}' of the original has values that are NaN or infinite, which metric "
            f"{measure.name} cannot count with: try agreement."
        )
    if measure.compares != "choices" or first.ndim < 2 or not is_float(first):
        return
    n_classes = first.shape[2 if first.ndim == 3 else 1]
    if n_classes < 2:
        raise UsageError(
            f"Output '{name}' {first.shape} has one number where metric {measure.name} needs one for each of "
            "two or more classes: try cosine, psnr, sqnr or r2."
        )
    if measure.needs_labels and labels is not None and np.max(labels) >= n_classes:
        raise UsageError(
            f"Labels go up to {np.max(labels)}, and output '{name}' {first.shape} has scores for "
            f"{n_classes} classes, counted from 0: metric {measure.name} needs labels of these classes."
        )


def _left_out(sums: FloatArray) -> FloatArray:
    """Return totals without each sample in turn: ``(k, n)`` of the samples -> ``(k, n)``."""
    left: FloatArray = np.maximum(sums.sum(axis=1, keepdims=True) - sums, 0.0)  # not below 0 by rounding
    return left


def _jackknife(values: FloatArray) -> float:
    """Return the standard error of a statistic, given its values without each of the n parts.

    Source: Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9 (1981).
    """
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return inf
    return sqrt((len(values) - 1) * float(np.var(values)))


def _decibels(peak: float, errors: FloatArray) -> FloatArray:
    """Return the peak signal-to-noise ratio at mean square errors, as metric psnr counts it."""
    if peak <= 0:
        return np.where(errors > 0, -LIMIT_DB, LIMIT_DB)
    least = peak**2 * 10.0 ** (-LIMIT_DB / 10.0)
    return np.asarray(10.0 * np.log10(peak**2 / np.maximum(errors, least)))
