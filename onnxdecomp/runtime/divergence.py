"""How far a changed model's outputs are from the original's: a smooth number that needs few samples.

A drop in accuracy is counted in whole samples, so a few hundred do not tell small changes apart. How far the
outputs move does, and it needs no labels.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.evaluate import Outputs
from onnxdecomp.runtime.power import blocks, noise_powers, signal_powers
from onnxdecomp.runtime.session import Array

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]

SUM_TOLERANCE = 0.01
"""How far the sum of a row of probabilities, or the length of an embedding, may be from 1, which is what
float16 leaves of it."""

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Smaller probabilities count as this, so that one that vanished in float32 does not decide alone."""

EVEN = 0.97
"""Entropy of scores over the most there could be, above which none of them stands out."""

NEARLY_ALWAYS = 0.9
"""Share of rows of which the same entry is the highest, above which that says little."""

MUCH_LARGER = 10.0
"""Numbers of one step so many times as large as those of most are no scores of the same classes."""

LARGE_MARGIN = 20.0
"""How far in nats the highest of some scores is ahead at most, at half of the places or more. Their softmax
would leave the others less than what a digit of float32 holds."""

MIN_TELLING_ROWS, MAX_TELLING_ROWS = 16, 4096
"""Rows that tell whether numbers are scores, at the least and at the most."""

MAX_VALUES = 2**22
"""Class scores that are compared at most; of more, rows that are drawn evenly stand for all. Words of a large
dictionary at every step of a text would take many times as long to compare as to work out."""

MAX_STEPS, SAME_FACTOR = 8, 1e-4
"""Newton steps to the best factor for all scores, and the share of it below which none is made."""


_Part = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
"""Rows of weights ``(r,)``, log p, p and log q ``(r, C)``."""


class Divergence:
    """The divergence of outputs from those of the original.

    Of class scores it is the mean Kullback-Leibler divergence KL(original || outputs) in nats over samples
    and positions: of the softmax, or of the rows themselves where they are probabilities already. Otherwise
    it is the noise power ||out - ref||^2 / ||ref||^2, as the mean over the outputs of floating point; without
    any, the share of entries that differ.

    Layers that are fitted by least squares shrink what they put out by what they cannot explain, and scores
    come out too small by a tenth or more, which no choice of a class depends on: `up_to_factor` leaves out
    what one factor for all scores, that of a temperature, would mend.

    Args:
        reference: Outputs of the original, samples on axis 0.
        weights: ``(n,)``, what each sample counts for in the mean over class scores; None counts all alike,
            1 / n each.
        as_classes: Whether the first output is class scores; None asks `looks_like_class_scores`.
        up_to_factor: Return the least divergence of the class scores times any positive factor; of
            probabilities, to any power.
        of_variance: Take the noise power over that of what varies between the samples.
    """

    def __init__(
        self,
        reference: Outputs,
        weights: FloatArray | None = None,
        *,
        as_classes: bool | None = None,
        up_to_factor: bool = False,
        of_variance: bool = False,
    ) -> None:
        self._reference, self._weights = reference, weights
        self._as_classes = looks_like_class_scores(reference) if as_classes is None else as_classes
        self._up_to_factor, self._of_variance = up_to_factor, of_variance

    def of(self, outputs: Outputs) -> float:
        """Return the divergence, at least 0.

        Returns:
            0 for equal outputs; `inf` where one is missing or of another shape, or where an entry is NaN or
            infinite and the original's is not.
        """
        if any(np.shape(outputs.get(name, ())) != np.shape(a) for name, a in self._reference.items()):
            return inf
        with np.errstate(all="ignore"):
            found = self._mean_kl(outputs) if self._as_classes else self._noise_power(outputs)
        return found if isfinite(found) else inf

    def _mean_kl(self, outputs: Outputs) -> float:
        ours, theirs = _rows_of(outputs), _rows_of(self._reference)  # (n steps, C)
        if any(np.any(broken_rows(ours[rows], theirs[rows])) for rows in blocks(*theirs.shape)):
            return inf
        parts = [
            (weights, log_p, p, self._logs(np.asarray(ours[rows], np.float64)))
            for rows, weights, log_p, p in self._original
        ]
        factor = _best_factor(parts) if self._up_to_factor else 1.0
        return sum(
            float(weights @ _kl(log_p, p, log_q if factor == 1.0 else log_softmax(factor * log_q)))
            for weights, log_p, p, log_q in parts
        )

    @cached_property
    def _original(self) -> list[tuple[Rows, FloatArray, FloatArray, FloatArray]]:
        """Rows to compare, what they count for, and logarithms of the original's probabilities and these."""
        scores, n_samples = _rows_of(self._reference), len(first_output(self._reference))
        n_rows, n_classes = scores.shape
        weights = np.full(n_samples, 1.0 / n_samples) if self._weights is None else self._weights
        n_steps = n_rows // n_samples
        weights = np.repeat(weights / n_steps, n_steps)
        compared = _drawn(n_rows, max(1, MAX_VALUES // n_classes))
        share = weights[compared].sum() / weights.sum()
        found = []
        for some in blocks(len(compared), n_classes):
            rows = compared[some]
            log_p = self._logs(np.asarray(scores[rows], np.float64))
            found.append((rows, weights[rows] / share, log_p, np.exp(log_p)))
        return found

    @cached_property
    def _logs(self) -> Callable[[FloatArray], FloatArray]:
        return logs_for(first_output(self._reference))

    def _noise_power(self, outputs: Outputs) -> float:
        if not self._powers:
            pairs = [(outputs[name], array) for name, array in self._reference.items()]
            return float(np.mean([np.mean(np.asarray(ours != theirs)) for ours, theirs in pairs]))
        found = [
            float(noise_over_signal(_total(noise_powers, outputs[name], self._reference[name]), power))
            for name, power in self._powers.items()
        ]
        return float(np.mean(found))

    @cached_property
    def _powers(self) -> dict[str, FloatArray]:
        """The power of each output of floating point, of its finite values."""
        return {
            name: _total(signal_powers, array, of_variance=self._of_variance)
            for name, array in self._reference.items()
            if is_float(np.asarray(array))
        }


def _total(powers: Callable[..., FloatArray], *outputs: Array, **options: bool) -> FloatArray:
    """Return powers summed over the samples, entries left out that are not finite."""
    return np.asarray(powers(*map(np.atleast_1d, outputs), finite_only=True, **options).sum())


def looks_like_class_scores(outputs: Outputs) -> bool:
    """Tell whether the first output may be scores, (n, C) or (n, steps, C) of floating point, C >= 2."""
    first = np.asarray(first_output(outputs))
    if not is_float(first) or first.ndim not in (2, 3) or first.shape[-1] < 2 or not first.size:
        return False
    highest = np.max(np.asarray(first, np.float64), axis=-1)
    return bool(np.all(np.isfinite(highest)))  # an entry may be -inf: a class ruled out


def first_output(outputs: Outputs) -> Array:
    """Return the first output."""
    return next(iter(outputs.values()))


def is_float(array: Array) -> bool:
    """Tell whether an array is of floating point, those kinds included that numpy itself does not know."""
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))


def noise_over_signal(noise: FloatArray, signal: FloatArray) -> FloatArray:
    """Return noise / signal, entry by entry; without a signal any noise counts as much as all of it."""
    return np.where(signal > 0, noise / np.where(signal > 0, signal, 1.0), np.sign(noise))


def broken_rows(ours: Array, theirs: Array) -> NDArray[np.bool_]:
    """Tell of each row ``(n, values)`` whether an entry is NaN or infinite and the original's is not."""
    values = np.asarray(ours, np.float64)
    return np.asarray(np.any(~np.isfinite(values) & (values != theirs), axis=1))


def are_probabilities(scores: Array) -> bool:
    """Tell whether rows along the last axis are probabilities: not negative, with a sum of 1."""
    values = np.asarray(scores, np.float64)
    return bool(np.all(values >= 0) and np.all(np.abs(values.sum(-1) - 1) <= SUM_TOLERANCE))


def are_class_scores(outputs: Outputs) -> bool:
    """Tell whether the first output looks like class scores, and its numbers do so too."""
    return looks_like_class_scores(outputs) and not are_plain_numbers(np.asarray(first_output(outputs)))


def are_plain_numbers(scores: Array) -> bool:
    """Tell whether numbers along the last axis had better not be compared by which of them is the highest.

    That is nearly always the same one, as of ratings, or of what detects something at few of many places: to
    say so always would be right most of the time. Or they are no probabilities, and none stands out: scores
    of a trained classifier are not so even, unless they are too small for a softmax; coordinates, levels of a
    signal and masks are. Or they are none, and at several places ``(n, steps, C)`` none is negative, the
    highest is far ahead of all others, as of coordinates in pixels, or they are of different kinds: some are
    between 0 and 1 everywhere and others are not, or some steps are of another size than most. Scores are
    alike everywhere, boxes and what is found in them side by side are not.
    """
    every = np.asarray(scores).reshape(-1, np.shape(scores)[-1])
    rows = np.asarray(every[_drawn(len(every), MAX_TELLING_ROWS)], np.float64)
    if len(rows) >= MIN_TELLING_ROWS and _most_frequent(np.argmax(rows, axis=1)) >= NEARLY_ALWAYS:
        return True
    if are_probabilities(scores):
        return False
    if np.ndim(scores) == 3 and np.shape(scores)[1] > 1:
        second, highest = np.partition(rows, -2, axis=1)[:, -2:].T
        far_ahead = np.median(highest - second) > LARGE_MARGIN
        if rows.min() >= 0 or far_ahead or _has_shares(rows) or not _of_one_size(scores):
            return True
    logs = log_softmax(rows)
    entropy = -np.sum(np.exp(logs) * np.where(np.isfinite(logs), logs, 0.0), axis=-1)
    return bool(entropy.mean() > EVEN * np.log(rows.shape[1]))


def are_embeddings(rows: Array) -> bool:
    """Tell whether rows along the last axis are vectors of length 1 that point anywhere."""
    values = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(values, axis=-1)
    return bool(values.min() < 0 and np.all(np.abs(lengths - 1) <= SUM_TOLERANCE))


def logs_for(reference: Array) -> Callable[[FloatArray], FloatArray]:
    """Return what makes logarithms of probabilities of rows like these: of scores, or of probabilities."""
    return _log_probabilities if are_probabilities(reference) else log_softmax


def log_softmax(rows: FloatArray) -> FloatArray:
    """Return the logarithms of the softmax of each row."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _rows_of(outputs: Outputs) -> Array:
    """Return the class scores of all samples and steps, ``(n steps, C)``."""
    scores = first_output(outputs)
    return scores.reshape(-1, scores.shape[-1])


def _has_shares(rows: FloatArray) -> bool:
    """Tell whether some entries of all rows ``(n, C)`` are between 0 and 1, and others are not."""
    are_shares = np.all((rows >= 0) & (rows <= 1), axis=0)
    return len(rows) >= MIN_TELLING_ROWS and bool(np.any(are_shares) and not np.all(are_shares))


def _of_one_size(scores: Array) -> bool:
    """Tell whether the numbers of no step ``(n, steps, C)`` are much larger than those of most."""
    few = np.asarray(scores[:MIN_TELLING_ROWS], np.float64)
    sizes = np.sqrt(np.square(np.where(np.isfinite(few), few, 0.0)).mean(axis=(0, 2)))  # (steps,)
    sizes = sizes[sizes > 0]  # of what is padded nothing is known
    return not len(sizes) or bool(sizes.max() <= MUCH_LARGER * np.median(sizes))


def _most_frequent(chosen: NDArray[np.intp]) -> float:
    """Return the share of the most frequent of some numbers."""
    return float(np.bincount(chosen).max()) / len(chosen)


def _drawn(n_rows: int, n_wanted: int) -> Rows:
    """Return which of all rows are compared, rising: the same ones each time."""
    if n_rows <= n_wanted:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(0).choice(n_rows, n_wanted, replace=False))


def _best_factor(parts: Sequence[_Part]) -> float:
    """Return the factor of least divergence, which is convex in it, by Newton's method."""
    factor = 1.0
    for _ in range(MAX_STEPS):
        slope = curvature = 0.0
        for weights, _, p, log_q in parts:
            scores = np.where(np.isneginf(log_q), 0.0, log_q)  # a class ruled out has no say
            q = np.exp(factor * (log_q - log_q.max(axis=1, keepdims=True)))
            total = q.sum(1)
            q *= scores
            mean = q.sum(1) / total
            q *= scores
            slope += float(weights @ (mean - np.einsum("rc,rc->r", p, scores)))
            curvature += float(weights @ (q.sum(1) / total - np.square(mean)))
        if not (isfinite(slope) and curvature > 0):
            return 1.0
        step = min(max(-slope / curvature, -factor / 2), factor)
        if abs(step) < SAME_FACTOR * factor:
            break
        factor += step
    return factor


def _log_probabilities(rows: FloatArray) -> FloatArray:
    kept = np.maximum(rows, LEAST_PROBABILITY)
    return np.asarray(np.log(kept / kept.sum(axis=1, keepdims=True)))


def _kl(log_p: FloatArray, p: FloatArray, log_q: FloatArray) -> FloatArray:
    """Return KL(p || q) of each row, as sum of p log(p / q) - p + q: no term is below 0."""
    q, ratio = np.exp(log_q), log_p - log_q
    near = p * (ratio + np.expm1(-ratio))  # keeps its digits where p and q are almost equal
    terms = np.where(np.abs(ratio) < 1, near, p * ratio + q - p)
    return np.asarray(np.where(p > 0, np.maximum(terms, 0.0), q).sum(axis=1))
