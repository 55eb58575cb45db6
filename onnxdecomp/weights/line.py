"""Weighted numbers in rising order as prefix sums, sorted, or counted where they are too many to sort."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.base import FloatArray
from onnxdecomp.weights.nearest import Floats, Keys, binary_exponent, chunks, largest_magnitude, scaled

Edges = NDArray[np.intp]
"""``(K + 1,)``: cluster k is ``values[edges[k]:edges[k + 1]]``, never empty."""

MAX_SORTED = 1 << 22
"""Most values that are sorted."""

KEY_BITS = 15
COUNT_CHUNK = 1 << 20


@dataclass(frozen=True)
class Line:
    """Distinct weighted values in rising order, as prefix sums.

    Args:
        values: ``(n,)``, rising, in units of ``2^exponent``.
        mass: ``(n + 1,)`` sum of the weights before each value.
        moment: ``(n + 1,)`` sum of weight times ``value - center`` before each value.
        center: About the mean of the values.
        spread: Sum of weight times ``(value - center)^2``, in the same units.
        exponent: Of the unit.
    """

    values: Floats
    mass: Floats
    moment: Floats
    center: float
    spread: float
    exponent: int

    @classmethod
    def of(cls, values: FloatArray, weights: FloatArray | None = None) -> "Line":
        """Return the line of an array of any shape; `weights` is broadcast to it, None counts each once.

        Weights that are all zero count as none. Memory beyond the input: some 50 bytes a value where they
        are sorted, else some 300 MB.

        Raises:
            ValueError: There is no value, one is not finite, or a weight is negative or not finite.
        """
        largest = largest_magnitude(values)
        if values.size == 0 or not np.isfinite(largest):
            what = "there are none" if values.size == 0 else "some are infinite or not a number"
            raise ValueError(f"the weights cannot be clustered: {what}")
        if weights is not None:
            weights = _checked(np.broadcast_to(weights, values.shape))
        exponent = binary_exponent(largest)
        if values.size <= MAX_SORTED:
            return cls(*_sorted(values, weights, exponent), exponent)
        return cls(*_counted(values, weights, largest), exponent)

    @property
    def energy(self) -> float:
        """Sum of weight times value squared."""
        mass, moment = float(self.mass[-1]), float(self.moment[-1])
        inner = self.spread + 2 * self.center * moment + self.center**2 * mass
        return float(np.ldexp(inner, 2 * self.exponent))

    def loss(self, centroids: Floats) -> float:
        """Return the sum of weight times squared distance to the nearest of rising centroids ``(K,)``."""
        places = np.ldexp(centroids, -self.exponent)
        inner = np.searchsorted(self.values, places[:-1] / 2 + places[1:] / 2)
        edges = np.concatenate([[0], inner, [len(self.values)]])
        mass, moment, around = np.diff(self.mass[edges]), np.diff(self.moment[edges]), places - self.center
        lost = self.spread + float(np.sum(around**2 * mass - 2 * around * moment))
        return float(np.ldexp(max(lost, 0.0), 2 * self.exponent))

    def means(self, edges: Edges) -> Floats:
        """Return ``(K,)``, the best centroid of each cluster."""
        means: Floats = np.diff(self.moment[edges]) / np.diff(self.mass[edges]) + self.center
        return means

    def cost(self, edges: Edges) -> float:
        """Return the loss of the best centroids of clusters, less the spread: negative or zero."""
        return float(-np.sum(np.diff(self.moment[edges]) ** 2 / np.diff(self.mass[edges])))


def prefix(terms: Floats) -> Floats:
    """Return ``(n + 1,)`` sums of the terms before each."""
    sums = np.empty(len(terms) + 1)
    sums[0] = 0.0
    np.cumsum(terms, out=sums[1:])
    return sums


def _checked(weights: FloatArray) -> FloatArray | None:
    """Return weights that are fit to be used; None when all are zero."""
    low, high = float(np.min(weights)), float(np.max(weights))
    if not (low >= 0 and np.isfinite(high)):
        raise ValueError(
            "the weights cannot be clustered: their importance is negative, infinite or no number"
        )
    return weights if high > 0 else None


Sums = tuple[Floats, Floats, Floats, float, float]
"""Of a `Line`: values, mass, moment, center and spread."""


def _sorted(values: FloatArray, weights: FloatArray | None, exponent: int) -> Sums:
    """Return the sums of the distinct values of an array."""
    flat = values.reshape(-1)
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)  # sorted faster
    each: Floats | None = None
    if weights is None:
        rising = np.sort(flat)
    else:
        order = np.argsort(flat, kind="stable")
        each = weights.reshape(-1)[order].astype(np.float64)
        rising, each = flat[order][each > 0], each[each > 0]
    is_first = np.empty(len(rising), np.bool_)
    is_first[:1] = True
    np.not_equal(rising[1:], rising[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    places = scaled(rising[starts], -exponent)
    mass = np.empty(len(starts) + 1)
    mass[:-1], mass[-1] = starts, len(rising)
    if each is not None:
        mass = prefix(np.add.reduceat(each, starts))
    return _summed(places, mass)


def _summed(places: Floats, mass: Floats, hidden: float = 0.0) -> Sums:
    """Return the sums of rising places ``(n,)`` with the weights ``(n + 1,)`` before each."""
    atoms = np.diff(mass)
    center = float(np.dot(atoms, places)) / float(mass[-1])
    around = places - center
    atoms *= around
    return places, mass, prefix(atoms), center, float(np.dot(atoms, around)) + hidden


def _counted(values: FloatArray, weights: FloatArray | None, largest: float) -> Sums:
    """Return the sums of cells of near values: their means stand for them."""
    keys, exponent = Keys(largest, KEY_BITS), binary_exponent(largest)
    mass, first, second = np.zeros(keys.n_keys), np.zeros(keys.n_keys), 0.0
    for place, part in chunks(values, COUNT_CHUNK):
        at = keys.of(part)
        places = scaled(part, -exponent)
        if weights is None:
            mass += np.bincount(at, minlength=keys.n_keys)
            second += float(np.dot(places, places))
        else:
            each = np.asarray(weights.flat[place], np.float64)
            mass += np.bincount(at, each, keys.n_keys)
            second += float(np.dot(places * places, each))
            places *= each
        first += np.bincount(at, places, keys.n_keys)
    seen = np.flatnonzero(mass)
    mass, first = mass[seen], first[seen]
    hidden = second - float(np.dot(first, first / mass))  # what the means of cells do not show
    return _summed(first / mass, prefix(mass), max(hidden, 0.0))
