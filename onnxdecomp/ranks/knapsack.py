"""Multiple-choice knapsack: one option per layer, least total error within a budget of total cost.

Solved in three steps. The options on the lower-left convex hull of each layer, merged by slope, are the
whole path of Lagrangian solutions, and with it the linear relaxation at every budget. The solution of that
path just below the budget, its leftover filled greedily, bounds the error from above. Then the layers are
added one after another to a list of partial choices: a partial choice goes when another is no dearer and no
worse, or when the relaxation of the layers to come already makes it no better than what is known.

With n layers of m options and at most S partial choices (`WIDTHS`) the work is O(n^2 m + n S m log(S m)),
the memory O(n S + S m). The result is the optimum unless more than S partial choices survive somewhere;
then those with the least bounds go on, and the result is the best of what they lead to.

Source: Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of
Operational Research 83 (1995), for hulls and bounds; Nemhauser and Ullmann, "Discrete dynamic programming
and capital allocation", Management Science 15 (1969), for the lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, inf, isfinite, isnan

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float64]
IntVector = NDArray[np.int64]

WIDTHS = (64, 512)
"""Partial choices kept from one layer to the next; the wider search is made when the first drops some."""

ROUNDING = 1e-12
"""Relative difference below which sums in another order count as equal."""


@dataclass(frozen=True)
class Option:
    """What one layer may become.

    Args:
        error: What it costs in accuracy, at least 0, additive over layers; infinite when it is no option.
        cost: Milliseconds, multiply-accumulates or bytes, at least 0.
    """

    error: float
    cost: float


def choose(layers: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Choose one option per layer with the least total error at a total cost of at most `budget`.

    The result is the optimum, up to rounding, unless a search as wide as `WIDTHS` allows drops partial
    choices; so a larger budget gives no larger error. Of equal options the first is taken; equal input
    gives an equal choice. Totals are exact sums (`math.fsum`).

    Returns:
        The index of each layer's option; None when even the cheapest options exceed the budget.

    Raises:
        ValueError: A layer has no option, or a number is negative or NaN.
    """
    if isnan(budget):
        raise ValueError("The budget of a knapsack is NaN.")
    problem = _Problem.of(layers)
    if problem is None:
        return None
    if problem.total_cost(problem.hull_path(0)) > budget:
        return None
    best = problem.hull_path(len(problem.layer))
    if problem.total_cost(best) <= budget:
        return problem.indices(best)
    best = _filled(problem, _within(problem, budget), budget)
    for width in WIDTHS:
        best, proved = _refined(problem, best, budget, width)
        if proved:
            break
    return problem.indices(best)


def frontier(layers: Sequence[Sequence[Option]]) -> list[tuple[float, float, list[int]]]:
    """Return the choices that are optimal for some price of cost, the strongest compression last.

    Returns:
        (cost, error, index of each layer's option): from the least error to the least cost, one layer
        changed at a time in the order of error per cost saved. Empty when a layer has no finite option.

    Raises:
        ValueError: As of `choose`.
    """
    problem = _Problem.of(layers)
    if problem is None:
        return []
    found = []
    for count in range(len(problem.layer), -1, -1):
        chosen = problem.hull_path(count)
        found.append((problem.total_cost(chosen), problem.total_error(chosen), problem.indices(chosen)))
    return found


@dataclass(frozen=True)
class _Problem:
    """The options worth choosing, cheapest first, and the hull's upgrades from one to another.

    Args:
        index: Per layer the indices of its options; dominated and infinite ones are left out.
        cost: Per layer their costs, rising.
        error: Per layer their errors, falling.
        start_cost: Per layer the cost of its cheapest option.
        start_error: Per layer the error of its cheapest option.
        layer: Layer of each upgrade; the upgrade that saves the most error per cost comes first.
        position: Position in the layer's options that it leads to.
        extra_cost: What it costs.
        extra_error: What it changes the error by, negative.
    """

    index: list[IntVector]
    cost: list[FloatVector]
    error: list[FloatVector]
    start_cost: FloatVector
    start_error: FloatVector
    layer: IntVector
    position: IntVector
    extra_cost: FloatVector
    extra_error: FloatVector

    @classmethod
    def of(cls, layers: Sequence[Sequence[Option]]) -> "_Problem | None":
        """Return the problem of `layers`; None when a layer has no finite option."""
        kept = [_undominated(number, options) for number, options in enumerate(layers)]
        if not all(kept):
            return None
        upgrades = [
            ((e1 - e0) / (c1 - c0), number, position, c1 - c0, e1 - e0)
            for number, options in enumerate(kept)
            for (_, c0, e0), (position, c1, e1) in pairwise(_hull(options))
        ]
        upgrades.sort(key=lambda u: u[:3])
        return cls(
            [np.array([i for i, _, _ in options]) for options in kept],
            [np.array([c for _, c, _ in options]) for options in kept],
            [np.array([e for _, _, e in options]) for options in kept],
            np.array([options[0][1] for options in kept]),
            np.array([options[0][2] for options in kept]),
            np.array([u[1] for u in upgrades], np.int64),
            np.array([u[2] for u in upgrades], np.int64),
            np.array([u[3] for u in upgrades], np.float64),
            np.array([u[4] for u in upgrades], np.float64),
        )

    def hull_path(self, count: int) -> IntVector:
        """Return the positions after the first `count` upgrades from the cheapest options."""
        chosen = np.zeros(len(self.index), np.int64)
        np.maximum.at(chosen, self.layer[:count], self.position[:count])
        return chosen

    def total_cost(self, chosen: IntVector) -> float:
        """Return the cost of one position per layer."""
        return fsum(cost[p] for cost, p in zip(self.cost, chosen, strict=True))

    def total_error(self, chosen: IntVector) -> float:
        """Return the error of one position per layer."""
        return fsum(error[p] for error, p in zip(self.error, chosen, strict=True))

    def indices(self, chosen: IntVector) -> list[int]:
        """Return the indices the caller knows the positions by."""
        return [int(index[p]) for index, p in zip(self.index, chosen, strict=True)]

    def relaxation(self, part: NDArray[np.bool_]) -> tuple[FloatVector, FloatVector]:
        """Return costs, rising, and the least errors of some layers there, by linear relaxation."""
        mine = part[self.layer]
        costs = np.cumsum(np.append(self.start_cost[part].sum(), self.extra_cost[mine]))
        errors = np.cumsum(np.append(self.start_error[part].sum(), self.extra_error[mine]))
        return costs, errors


def _undominated(number: int, options: Sequence[Option]) -> list[tuple[int, float, float]]:
    """Return (index, cost, error) of the finite options with less error than every cheaper one."""
    if not options:
        raise ValueError(f"Layer {number} of a knapsack has no option.")
    if not all(o.error >= 0 and o.cost >= 0 for o in options):
        raise ValueError(f"Layer {number} of a knapsack has an error or a cost that is negative or NaN.")
    kept: list[tuple[int, float, float]] = []
    for cost, error, index in sorted((o.cost, o.error, i) for i, o in enumerate(options)):
        if isfinite(cost) and error < (kept[-1][2] if kept else inf):
            kept.append((index, cost, error))
    return kept


def _hull(options: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """Return (position, cost, error) of the corners of the lower-left convex hull."""
    corners: list[tuple[int, float, float]] = []
    for position, (_, cost, error) in enumerate(options):
        while len(corners) > 1:
            (_, c0, e0), (_, c1, e1) = corners[-2:]
            if (e1 - e0) / (c1 - c0) < (error - e1) / (cost - c1):
                break
            corners.pop()
        corners.append((position, cost, error))
    return corners


def _within(problem: _Problem, budget: float) -> IntVector:
    """Return the last solution of the hull path, from the cheapest on, that keeps the budget."""
    low, high = 0, len(problem.layer)
    while low < high:
        middle = (low + high + 1) // 2
        if problem.total_cost(problem.hull_path(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return problem.hull_path(low)


def _filled(problem: _Problem, chosen: IntVector, budget: float) -> IntVector:
    """Spend what is left of the budget, each time on the change of one layer that saves the most error."""
    layer = np.repeat(np.arange(len(problem.cost)), [len(c) for c in problem.cost])
    first = np.concatenate([[0], np.cumsum([len(c) for c in problem.cost])[:-1]])
    cost, error = np.concatenate(problem.cost), np.concatenate(problem.error)
    chosen = chosen.copy()
    while True:
        now = (first + chosen)[layer]
        left = budget - problem.total_cost(chosen)
        saved = np.where(cost - cost[now] <= left, error[now] - error, 0.0)
        best = int(np.argmax(saved))
        if saved[best] <= 0:
            return chosen
        trial = chosen.copy()
        trial[layer[best]] = best - first[layer[best]]
        if problem.total_cost(trial) > budget:  # by rounding
            return chosen
        chosen = trial


def _refined(problem: _Problem, known: IntVector, budget: float, width: int) -> tuple[IntVector, bool]:
    """Add the layers one after another to a list of at most `width` partial choices.

    Returns:
        The best choice found, `known` where none is better; and whether that is proved to be the optimum.
    """
    limit = problem.total_error(known) * (1 - ROUNDING)
    allowed = budget * (1 + ROUNDING)
    live = _live(problem, allowed, limit)
    if not all(map(len, live)):
        return known, True
    # Wide layers first: what the narrow ones can still do is then close to their relaxation.
    order = sorted(range(len(live)), key=lambda n: -float(np.ptp(problem.cost[n][live[n]])))
    costs, errors, complete = np.zeros(1), np.zeros(1), True  # (S,)
    steps: list[tuple[IntVector, IntVector]] = []
    to_come = np.ones(len(live), bool)
    for number in order:
        to_come[number] = False
        options = live[number]
        cost = np.add.outer(costs, problem.cost[number][options]).ravel()  # (S m)
        error = np.add.outer(errors, problem.error[number][options]).ravel()  # (S m)
        bound = error + np.interp(allowed - cost, *problem.relaxation(to_come), left=inf)
        kept = _undominated_sums(cost, error, np.flatnonzero(bound < limit))
        if len(kept) > width:
            complete = False
            kept = np.sort(kept[np.argpartition(bound[kept], width)[:width]])
        if not len(kept):
            return known, complete
        steps.append((kept // len(options), options[kept % len(options)]))
        costs, errors = cost[kept], error[kept]
    for state in np.lexsort((costs, errors)):
        chosen = _traced(steps, order, int(state))
        if problem.total_cost(chosen) <= budget:
            return chosen, complete
    return known, complete


def _live(problem: _Problem, budget: float, limit: float) -> list[IntVector]:
    """Return per layer the positions with which the other layers' relaxation gets below the error `limit`."""
    live = []
    for number, (cost, error) in enumerate(zip(problem.cost, problem.error, strict=True)):
        others = problem.relaxation(np.arange(len(problem.cost)) != number)
        live.append(np.flatnonzero(error + np.interp(budget - cost, *others, left=inf) < limit))
    return live


def _undominated_sums(cost: FloatVector, error: FloatVector, among: IntVector) -> IntVector:
    """Return which of the partial choices `among` have less error than every cheaper one, cheapest first."""
    rising = among[np.lexsort((error[among], cost[among]))]
    least = np.minimum.accumulate(error[rising])
    return rising[least < np.append(inf, least[:-1])]


def _traced(steps: list[tuple[IntVector, IntVector]], order: list[int], state: int) -> IntVector:
    """Return the position in every layer that a partial choice of the last step came by."""
    chosen = np.zeros(len(order), np.int64)
    for (parents, positions), number in zip(reversed(steps), reversed(order), strict=True):
        chosen[number] = positions[state]
        state = int(parents[state])
    return chosen
