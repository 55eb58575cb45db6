"""Optimal k-means of weighted numbers: the centroids with the least weighted sum of squared distances.

On a line the clusters are intervals of the sorted values, so their edges are what is sought. With prefix sums
of the weights h and of h x, an interval's cost is a matter of four numbers::

    sum h (x - c)^2  =  sum h x^2 - (sum h x)^2 / sum h        at its best centroid c = sum h x / sum h

1. The values are merged into at most `MAX_CELLS` cells, most of them where the density to the power 1/3 says
   that the optimum has its edges (all cells when there are no more values than that).
2. Dynamic programming over the cells: exact. No cluster of the optimum costs more than a known solution as a
   whole, which leaves a narrow band of intervals; it is searched in one piece for each further centroid.
3. Lloyd's iteration over the values.
4. Dynamic programming over the values again, each edge free in a window around where it is, first in large
   steps, then in single values.

More than `MAX_EXACT` centroids start at quantiles of the density to the power 1/3, which are optimal in the
limit, and only 3. and 4. follow: some 1e-3 to 1e-2 above the least loss. Values that are too many to be
sorted come as cells, `weights.line` says how; centroids then differ from those of the sorted values by less
than a cell.

Source: Wang and Song, "Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming",
The R Journal 3 (2011); Panter and Dite, "Quantization distortion in pulse-count modulation with nonuniform
spacing of levels", Proceedings of the IRE 39 (1951), for the density to the power 1/3.
"""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxdecomp.weights.line import Edges, Line, prefix
from onnxdecomp.weights.nearest import Floats

MAX_EXACT = 256
"""Most centroids for which dynamic programming is worth its time."""

MIN_CELLS, MAX_CELLS, CELLS_PER_CENTROID = 1024, 4096, 16
FEW_VALUES = 1 << 15

MAX_LLOYD_STEPS = 10
"""Steps between searches that move many edges at once; more of them take time and win nothing."""

WINDOW = 12
"""Places left and right of an edge at which a window looks for a better one."""

REACH, REACH_OF_CELLS = 1.5, 0.25
"""Clusters that windows reach over at first, and where edges are already the best ones between cells."""

FALL = 4
"""By how much distances between the places of a window fall from pass to pass."""

OFFSETS = np.arange(-WINDOW, WINDOW + 1)

SEGMENT = 64
"""Clusters whose edges are sought together in their windows."""

N_TOGETHER = 16
"""Segments that are solved side by side; memory holds the costs of all their windows."""

MAX_WINDOWS = 24

MIN_GAIN = 1e-9
"""Share of the loss that a pass over the windows is worth."""

KNOTS, TAIL = 1 << 13, 1 << 11


def best_centroids(line: Line, n_centroids: int, *, fine: bool = True) -> Floats:
    """Return at most `n_centroids` rising centroids with the least `loss`; the same ones each time.

    When there are no more distinct values than centroids, these values are returned.

    Args:
        line: The values.
        n_centroids: 1 and more.
        fine: Whether up to `FEW_VALUES` values are searched in `MAX_CELLS` cells, which takes tenths of
            a second: losses are then within about 1e-6 of the least for up to 64 centroids, else some 1e-4.
    """
    if len(line.values) <= n_centroids:
        return np.ldexp(line.values, line.exponent)
    if n_centroids > MAX_EXACT:
        edges = lloyd(line, windowed(line, lloyd(line, companded(line, n_centroids))))
    else:
        few = fine and len(line.values) <= FEW_VALUES  # of few values, near optima are many
        n_cells = MAX_CELLS if few else max(CELLS_PER_CENTROID * n_centroids, MIN_CELLS)
        cells, places = _merged(line, n_cells)
        edges = optimal(cells, n_centroids)
        if len(cells.values) < len(line.values):
            edges = lloyd(line, windowed(line, lloyd(line, places[edges]), REACH_OF_CELLS))
    return np.ldexp(line.means(edges), line.exponent)


def _merged(line: Line, n_cells: int) -> tuple[Line, Edges]:
    """Return a line of at most `n_cells` cells, and where each begins among the values."""
    if len(line.values) <= n_cells:
        return line, np.arange(len(line.values) + 1)
    places = companded(line, n_cells)
    mass, moment, means = line.mass[places], line.moment[places], line.means(places)
    return Line(means, mass, moment, line.center, line.spread, line.exponent), places


def companded(line: Line, n_parts: int) -> Edges:
    """Return the edges of parts over each of which the density to the power 1/3 has the same integral.

    Where values are so far apart that the parts would be more than the values, each value is a part.
    """
    n = len(line.values)
    wanted = np.linspace(0.0, line.mass[-1], min(n, KNOTS) + 1)[1:-1]
    inner = np.searchsorted(line.mass, wanted, "right") - 1
    ends = np.arange(min(n, TAIL))
    knots = np.sort(np.concatenate([ends, inner, n - 1 - ends]))
    knots = knots[np.diff(knots, prepend=-1) > 0]
    counts, gaps, mass = np.diff(knots), np.diff(line.values[knots]), np.diff(line.mass[knots])
    free = np.cbrt(mass * gaps**2)
    alone = _alone(free, counts, n_parts)
    edges = np.repeat(knots[:-1][alone], counts[alone]) + _counted_up(counts[alone])
    area = prefix(np.where(alone, 0.0, free))
    wanted = np.linspace(0.0, area[-1], n_parts - len(edges) + 1)[1:-1]
    cuts = np.ceil(np.interp(wanted, area, knots)).astype(np.intp)
    return _not_empty(np.sort(np.concatenate([edges, cuts])), n)


def _counted_up(counts: Edges) -> Edges:
    """Return 1, 2, .. up to each count, one after the other."""
    whole = np.arange(1, int(np.sum(counts)) + 1)
    return whole - np.repeat(np.cumsum(counts) - counts, counts)


def _alone(free: Floats, counts: Edges, n_parts: int) -> NDArray[np.bool_]:
    """Return in which gaps each value is a part: where the share that is free would give it more than one."""
    order = np.argsort(-free / counts, kind="stable")
    n_left = n_parts - np.append(0, np.cumsum(counts[order]))  # parts for the others, if the first are alone
    able = n_left > 0
    levels = (np.sum(free) - prefix(free[order]))[able] / n_left[able]
    highest = np.append((free / counts)[order], 0.0)[: len(levels)]
    fits = highest <= levels
    n_alone = int(np.argmax(fits)) if np.any(fits) else len(levels) - 1
    alone = np.zeros(len(free), np.bool_)
    alone[order[:n_alone]] = True
    return alone


def lloyd(line: Line, edges: Edges) -> Edges:
    """Return edges in the middle between neighbouring means, by iteration; the cost never rises."""
    cost = line.cost(edges)
    for _ in range(MAX_LLOYD_STEPS):
        means = line.means(edges)
        moved = _not_empty(np.searchsorted(line.values, (means[:-1] + means[1:]) / 2), len(line.values))
        lower = line.cost(moved)
        if not lower < cost:
            break
        edges, cost = moved, lower
    return edges


def optimal(line: Line, n_clusters: int) -> Edges:
    """Return the edges with the least cost of any, by dynamic programming.

    Work: K n w operations for n values, w being the most neighbours that one cluster of the optimum can
    have; of the order of n / K^(2/3) where the values are companded cells.
    """
    n = len(line.values)
    width = _widest(line, lloyd(line, companded(line, n_clusters)))
    mass, moment = (_shifted(sums, width) for sums in (line.mass, line.moment))  # (w, n), before each start
    costs = line.moment[1:] - moment
    np.square(costs, out=costs)
    costs /= mass - line.mass[1:]  # negative
    least = np.full((n_clusters + 1, width + n + 1), np.inf)  # of the values before each; w do not exist
    least[0, width] = 0.0
    total = np.empty_like(costs)
    for before, after in pairwise(least):
        np.add(sliding_window_view(before, n)[1:-1], costs, out=total)  # before[end - w + row]
        np.min(total, axis=0, out=after[width + 1 :])
    edges = [n]
    for before in least[-2::-1]:
        end = edges[-1]
        edges.append(end - width + int(np.argmin(before[end : end + width] + costs[:, end - 1])))
    return np.array(edges[::-1])


def _shifted(sums: Floats, width: int) -> Floats:
    """Return a view ``(width, n)``: for each end, the sums at the `width` places before it."""
    padded = np.concatenate([np.zeros(width), sums])
    return sliding_window_view(padded, len(sums) - 1)[1:-1]


def _widest(line: Line, edges: Edges) -> int:
    """Return the most values in one cluster whose loss is no more than that of known edges as a whole."""
    mass = np.diff(line.mass)
    places = np.diff(line.moment) / mass
    second = prefix(mass * places**2)
    slack = 1e-12 * float(second[-1])  # what rounding may hide
    bound = float(second[-1]) + line.cost(edges) + slack
    ends = np.arange(1, len(mass) + 1)
    low, high = np.zeros_like(ends), ends - 1  # a cluster of one value costs nothing
    while np.any(low < high):
        middle = (low + high) // 2
        moment = line.moment[ends] - line.moment[middle]
        loss = second[ends] - second[middle] - moment**2 / (line.mass[ends] - line.mass[middle])
        fits = loss <= bound
        low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    return int(np.max(ends - low))


def windowed(line: Line, edges: Edges, reach: float = REACH) -> Edges:
    """Return edges that are the best of all in windows around them, at falling distances down to one value.

    A window reaches over so many clusters at first. Beyond `SEGMENT` clusters, edges at that distance stay
    where they are for one pass, others for the next.

    Work: K (2 WINDOW + 1)^2 operations for each of some passes.
    """
    steps = np.maximum((edges[2:] - edges[:-2]) // int(2 * WINDOW / reach), 1)
    cost, n_vain = line.cost(edges), 0
    n_offsets = 2 if len(steps) >= SEGMENT else 1
    for at in range(MAX_WINDOWS):
        moved = _best_in_windows(line, edges, steps, at % n_offsets * SEGMENT // 2)
        gain = cost - line.cost(moved)
        n_vain = 0 if gain > MIN_GAIN * (line.spread + cost) else n_vain + 1
        if gain > 0:
            edges, cost = moved, cost - gain
        if n_vain >= n_offsets and np.all(steps == 1):
            break
        steps = np.maximum(steps // FALL, 1)
    return edges


def _best_in_windows(line: Line, edges: Edges, steps: Edges, first: int) -> Edges:
    """Return the best edges of which each is within WINDOW times its own step of where it was.

    Edge `first` and each SEGMENT-th after it stay; the segments between them are solved side by side.
    """
    n, n_clusters = len(line.values), len(edges) - 1
    size = min(SEGMENT, n_clusters)
    front = -first % size
    back = -(front + n_clusters) % size
    order = np.arange(-front, n_clusters + back + 1)
    own = np.zeros(len(order), np.intp)
    own[front + 1 : front + n_clusters] = steps
    own[::size] = 0
    wanted = np.pad(edges, (front, back), "edge")[:, np.newaxis] + own[:, np.newaxis] * OFFSETS
    least = np.clip(order, 0, n)[:, np.newaxis]
    most = np.clip(n - n_clusters + order, 0, n)[:, np.newaxis]
    windows = np.clip(wanted, least, most)  # (segments S + 1, w)
    at = np.arange((len(order) - 1) // size) * size + np.arange(size + 1)[:, np.newaxis]
    parts = [at[:, start : start + N_TOGETHER] for start in range(0, at.shape[1], N_TOGETHER)]
    found = np.concatenate([_cheapest_path(line, windows[part]) for part in parts], 1)  # (S + 1, segments)
    path = np.append(found[:-1].T.reshape(-1), n)
    return path[front : front + n_clusters + 1]


def _cheapest_path(line: Line, windows: Edges) -> Edges:
    """Return the cheapest edges ``(S + 1, m)`` in windows ``(S + 1, m, w)``; the ends have no choice."""
    costs = _costs(line, windows[:-1, :, :, np.newaxis], windows[1:, :, np.newaxis, :])  # (S, m, w, w)
    least = np.zeros(windows.shape[1:])  # up to each place
    for step in costs:
        step += least[:, :, np.newaxis]
        least = np.min(step, axis=1)
    rows = np.arange(windows.shape[1])
    chosen = np.zeros(windows.shape[:2], np.intp)
    for at in range(len(costs) - 1, -1, -1):
        chosen[at] = np.argmin(costs[at, rows, :, chosen[at + 1]], axis=1)
    path: Edges = np.take_along_axis(windows, chosen[:, :, np.newaxis], axis=2)[:, :, 0]
    return path


def _costs(line: Line, starts: Edges, ends: Edges) -> Floats:
    """Return the cost of clusters between places; without limit where there is no value between them.

    Nothing before the first value and after the last one costs nothing.
    """
    mass = line.mass[ends] - line.mass[starts]
    costs = np.square(line.moment[ends] - line.moment[starts])
    empty = mass <= 0
    mass[empty] = -1.0
    costs /= np.negative(mass, out=mass)
    if np.any(empty):
        nothing = np.where((ends == 0) | (starts == len(line.values)), 0.0, np.inf)
        costs[empty] = np.broadcast_to(nothing, mass.shape)[empty]
    return costs


def _not_empty(inner: Edges, n: int) -> Edges:
    """Return ``(K + 1,)`` edges of n values from K - 1 that never fall, moved where a cluster was empty.

    What moves an edge takes single values out of a larger cluster, which never raises the cost.
    """
    order = np.arange(1, len(inner) + 1)
    rising = np.maximum.accumulate(np.maximum(inner - order, 0)) + order
    return np.concatenate([[0], np.minimum(rising, n - 1 - len(inner) + order), [n]])
