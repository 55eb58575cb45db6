"""Optimal k-means on a line, against exhaustive dynamic programming and against properties."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.weights import line as line_module
from onnxdecomp.weights.kmeans1d import best_centroids, companded
from onnxdecomp.weights.line import Line
from onnxdecomp.weights.nearest import nearest

EXACT = 1e-9
"""Of two sums of squares, relative to the larger."""

HIDDEN = 1e-13
"""Share of the whole energy below which prefix sums cannot tell losses apart."""

OPTIMUM = 1e-6
"""How far a loss may be above the least one."""

MADE = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tails": lambda rng, n: rng.standard_t(3, n),
    "very heavy tails": lambda rng, n: rng.lognormal(sigma=2, size=n),
    "uniform": lambda rng, n: rng.random(n),
    "two heaps": lambda rng, n: np.where(rng.random(n) < 0.5, rng.normal(-1, 1e-3, n), rng.normal(1, 0.1, n)),
    "ties": lambda rng, n: np.rint(40 * rng.standard_normal(n)),
    "many zeros": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.1),
    "far from zero": lambda rng, n: 100 + rng.standard_normal(n),
    "denormal": lambda rng, n: 1e-41 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e38 * np.tanh(rng.standard_normal(n)),
}

every_distribution = pytest.mark.parametrize("name", MADE)


def made(name, n, seed=0):
    return MADE[name](np.random.default_rng(seed), n).astype(np.float32)


def loss_of(values, centroids, weights=1.0):
    """Return the weighted sum of squared distances to the nearest centroid, term by term."""
    values = np.asarray(values, np.float64)
    distance = np.min(np.abs(values[..., np.newaxis] - centroids), axis=-1)
    return float(np.sum(weights * distance**2))


def least_loss(values, n_clusters, weights=None):
    """Return the least loss of any clusters, over all places of all edges."""
    order = np.argsort(values)
    x = np.asarray(values, np.float64)[order]
    h = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)[order]
    n = len(x)
    costs = np.full((n, n + 1), np.inf)
    for start in range(n):
        mass, first = np.cumsum(h[start:]), np.cumsum(h[start:] * x[start:])
        for end in range(start + 1, n + 1):
            m = mass[end - start - 1]
            c = first[end - start - 1] / m if m > 0 else 0.0
            costs[start, end] = np.sum(h[start:end] * (x[start:end] - c) ** 2)
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    for _ in range(n_clusters):
        best = np.minimum(best, np.min(best[:-1, np.newaxis] + costs, axis=0))
    return float(best[-1])


def full_optimum(values, n_clusters):
    """Return the least loss by divide and conquer over all sorted values."""
    x = np.sort(np.asarray(values, np.float64)) - np.mean(values, dtype=np.float64)
    first, second = np.append(0, np.cumsum(x)), np.append(0, np.cumsum(x * x))
    n = len(x)

    def cost(start, end):
        m = first[end] - first[start]
        return second[end] - second[start] - m * m / (end - start)

    best = np.append(np.inf, cost(0, np.arange(1, n + 1)))
    for _ in range(n_clusters - 1):
        following = np.full(n + 1, np.inf)
        stack = [(1, n, 0, n - 1)]
        while stack:
            low, high, least, most = stack.pop()
            if low > high:
                continue
            end = (low + high) // 2
            starts = np.arange(least, min(most, end - 1) + 1)
            total = best[starts] + cost(starts, end)
            at = int(np.argmin(total))
            following[end] = total[at]
            stack += [(low, end - 1, least, least + at), (end + 1, high, least + at, most)]
        best = np.minimum(best, following)
    return float(best[-1])


numbers = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-(2.0**-127), 2.0**-127, width=32),
    st.integers(-3, 3).map(float),
)
few = st.lists(numbers, min_size=1, max_size=14).map(lambda values: np.array(values, np.float32))


@settings(max_examples=40, deadline=None)
@given(values=few, n_centroids=st.integers(2, 5), data=st.data())
def test_few_weighted_values_get_the_optimum(values, n_centroids, data):
    weights = data.draw(
        st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)).map(np.array)
        if data.draw(st.booleans())
        else st.just(np.ones(len(values)))
    )
    counted = weights if np.any(weights) else np.ones(len(values))
    found = loss_of(values, best_centroids(Line.of(values, weights), n_centroids), counted)
    energy = float(np.sum(counted * values.astype(np.float64) ** 2))
    assert found <= least_loss(values, n_centroids, counted) * (1 + EXACT) + HIDDEN * energy


@pytest.mark.parametrize("n_centroids", [3, 12])
@pytest.mark.parametrize("name", ["normal", "heavy tails"])
def test_thousands_of_values_get_the_optimum(name, n_centroids):
    values = made(name, 2000)
    found = loss_of(values, best_centroids(Line.of(values), n_centroids))
    assert found <= full_optimum(values, n_centroids) * (1 + OPTIMUM)


@every_distribution
@pytest.mark.parametrize("n_centroids", [7, 600])
def test_the_stated_loss_is_that_of_the_values(name, n_centroids):
    values = made(name, 2000)
    line = Line.of(values)
    centroids = best_centroids(line, n_centroids)
    energy = float(np.sum(values.astype(np.float64) ** 2))
    expected = loss_of(values, centroids)
    assert line.energy == pytest.approx(energy, rel=EXACT)
    assert line.loss(centroids) == pytest.approx(expected, rel=1e-6, abs=HIDDEN * energy)


@every_distribution
def test_more_centroids_never_lose_more(name):
    line = Line.of(made(name, 700))
    losses = [line.loss(best_centroids(line, k)) for k in (1, 2, 4, 16, 64, 256, 300, 600)]
    slack = HIDDEN * line.energy
    assert all(after <= before + slack for before, after in pairwise(losses))


@settings(max_examples=30, deadline=None)
@given(values=few, n_centroids=st.integers(1, 6), data=st.data())
def test_a_weight_counts_as_often_as_it_says(values, n_centroids, data):
    counts = np.array(data.draw(st.lists(st.integers(1, 4), min_size=len(values), max_size=len(values))))
    weighted, repeated = Line.of(values, counts), Line.of(np.repeat(values, counts))
    found, expected = best_centroids(weighted, n_centroids), best_centroids(repeated, n_centroids)
    energy = float(np.sum(counts * values.astype(np.float64) ** 2))
    assert loss_of(values, found, counts) == pytest.approx(
        loss_of(values, expected, counts), rel=EXACT, abs=HIDDEN * energy
    )


@every_distribution
@pytest.mark.parametrize("weighted", [False, True])
def test_counted_values_are_as_good_as_sorted_ones(name, weighted, monkeypatch):
    values = made(name, 10_000).reshape(50, 200)
    weights = np.linspace(0, 1, 200) if weighted else None
    sorted_ = Line.of(values, weights)
    monkeypatch.setattr(line_module, "MAX_SORTED", 100)
    monkeypatch.setattr(line_module, "COUNT_CHUNK", 3000)
    counted = Line.of(values, weights)
    whole = 1.0 if weights is None else weights
    best = loss_of(values, best_centroids(sorted_, 16, fine=False), whole)
    assert loss_of(values, best_centroids(counted, 16, fine=False), whole) <= best * (1 + 1e-3)
    assert counted.energy == pytest.approx(sorted_.energy, rel=EXACT)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_centroids", [5, 100, 1000])
def test_few_distinct_values_are_kept_exactly(dtype, n_centroids):
    distinct = np.array([-3.0, -1e-5, 0.0, 0.1, 7.5], dtype)
    values = np.random.default_rng(0).choice(distinct, 1000)
    np.testing.assert_array_equal(best_centroids(Line.of(values), n_centroids), distinct)


@pytest.mark.parametrize("n_parts", [1, 2, 5, 40, 399])
@every_distribution
def test_companded_parts_are_as_many_as_asked_and_not_empty(name, n_parts):
    line = Line.of(made(name, 3000))
    n_parts = min(n_parts, len(line.values))
    edges = companded(line, n_parts)
    assert len(edges) == n_parts + 1
    assert (edges[0], edges[-1]) == (0, len(line.values))
    assert np.all(np.diff(edges) > 0)


def test_one_value_gives_one_centroid():
    np.testing.assert_array_equal(
        best_centroids(Line.of(np.full((3, 4), 0.3, np.float32)), 16), [np.float32(0.3)]
    )


def test_weights_that_are_all_zero_count_as_none():
    values = made("normal", 500)
    np.testing.assert_array_equal(
        best_centroids(Line.of(values, np.zeros(500)), 8), best_centroids(Line.of(values, np.ones(500)), 8)
    )


@pytest.mark.parametrize("n_centroids", [16, 300])
def test_the_order_of_the_values_does_not_matter(n_centroids):
    values = made("heavy tails", 2000)
    shuffled = np.random.default_rng(1).permutation(values)
    first, second = (
        best_centroids(Line.of(values), n_centroids),
        best_centroids(Line.of(shuffled), n_centroids),
    )
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="infinite or not a number"):
        Line.of(np.array([1.0, bad, 2.0], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_weights_that_count_nothing_sensible_are_refused(bad):
    with pytest.raises(ValueError, match="importance"):
        Line.of(np.ones(3, np.float32), np.array([1.0, bad, 2.0]))


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="there are none"):
        Line.of(np.empty((0, 3), np.float32))


@settings(max_examples=25, deadline=None)
@given(values=few, centroids=st.lists(numbers, min_size=1, max_size=9), dtype=st.sampled_from("fd"))
def test_every_value_gets_a_nearest_centroid(values, centroids, dtype):
    rising = np.sort(np.array(centroids, np.float64))
    wide = values.astype(dtype)
    distances = np.abs(wide.astype(np.float64)[:, np.newaxis] - rising)
    found = nearest(wide, rising)
    chosen = np.take_along_axis(distances, found[:, np.newaxis].astype(np.intp), 1)[:, 0]
    np.testing.assert_allclose(chosen, np.min(distances, axis=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("n_centroids", "index"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16)])
def test_indices_are_those_of_a_search_among_the_middles(dtype, n_centroids, index):
    rng = np.random.default_rng(0)
    centroids = np.sort(rng.standard_normal(n_centroids))
    values = rng.standard_normal((3, 30_000)).astype(dtype)[:, ::2]
    expected = np.searchsorted(centroids[:-1] / 2 + centroids[1:] / 2, values.astype(np.float64))
    found = nearest(values, centroids)
    assert found.dtype == index
    np.testing.assert_array_equal(found, expected)
