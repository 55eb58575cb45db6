"""Which forms with fewer channels are worth it, and how they stand beside methods and ranks in a choice.

A form is looked into where it is expected to save more than methods and ranks do, at the same loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from math import inf

from onnxdecomp.layer import chain_params
from onnxdecomp.ranks.knapsack import Option as Item
from onnxdecomp.ranks.knapsack import frontier
from onnxdecomp.search.auto import Ballot, Cost, Priced, divergence
from onnxdecomp.search.forms import Form
from onnxdecomp.search.trial import Trials

SHARES_OF_COST = (0.85, 0.7, 0.55, 0.4, 0.3)
"""Costs of whole models, over the original's, at which forms are compared with methods and ranks."""

MAX_DIVERGENCE = 0.15
"""Models whose outputs are expected to move further are not compared: nobody takes those."""

MIN_GAIN, MIN_GAIN_OF_LARGE = 0.02, 0.05
"""Share of such a model's cost that a form has to be expected to save, and where looks are long: it takes as
long to find out then as for a layer."""

MAX_FORMS = 2
"""Numbers of channels for which a layer is decomposed further."""


def worth_decomposing(
    forms: Sequence[Form], ballots: Mapping[str, Ballot], cost: Cost, trials: Trials
) -> list[list[Form]]:
    """Return the forms that are expected to bring more than methods and ranks do by themselves.

    What a form is expected to become: in one step, or with the methods and ranks of the layer as it is, each
    as much cheaper as it then has fewer MACs, the divergence of the lost channels added. That is compared at
    several prices of accuracy, those at which whole models of `SHARES_OF_COST` are the best choice.

    Args:
        forms: The forms, of the same layers those with more channels first.
        ballots: What the layers may become without them, by key.
        cost: What that costs.
        trials: Measures what a form in one step does to the outputs.

    Returns:
        For the same layers together; no layer is in two of them.
    """
    prices = _prices(list(ballots.values()))
    least = MIN_GAIN_OF_LARGE if trials.looks_are_long else MIN_GAIN
    gains: dict[frozenset[str], list[tuple[float, Form]]] = {}
    hopeless: set[frozenset[str]] = set()
    for form in forms:
        if form.keys in hopeless or _gain(form, 0.0, ballots, cost, prices) <= least:
            continue
        gain = _gain(form, divergence(trials, form.layer, form.whole, roughly=True), ballots, cost, prices)
        if gain > least:
            gains.setdefault(form.keys, []).append((gain, form))
        elif gain <= 0:  # with still fewer channels the outputs move faster than the cost falls
            hopeless.add(form.keys)
    chosen: list[list[Form]] = []
    taken: set[str] = set()
    for keys, found in sorted(gains.items(), key=lambda item: -max(gain for gain, _ in item[1])):
        if taken.isdisjoint(keys):
            best = sorted(found, key=lambda pair: -pair[0])[:MAX_FORMS]
            chosen.append([form for _, form in best])
            taken |= keys
    return chosen


def _prices(ballots: Sequence[Ballot]) -> list[tuple[float, float]]:
    """Return what a unit of cost is worth in divergence, where whole models have some costs, and those."""
    path = frontier([ballot.items for ballot in ballots])
    found = []
    for share in SHARES_OF_COST:
        for (cost, error, _), (less, more, _) in pairwise(path):
            if less <= share * path[0][0]:
                if more <= MAX_DIVERGENCE:
                    found.append(((more - error) / (cost - less), less))
                break
    return found


def _gain(
    form: Form,
    moved: float,
    ballots: Mapping[str, Ballot],
    cost: Cost,
    prices: Sequence[tuple[float, float]],
) -> float:
    """Return how much a form is expected to save, at the most, as a share of the model.

    Args:
        form: The form.
        moved: Divergence of it in one step.
        ballots, cost: As in `worth_decomposing`.
        prices: As of `_prices`.
    """
    own = [ballots[key] for key in form.keys if key in ballots]
    rest = _rest(cost(form.layer, None), own)
    expected = list(_expected(form, moved, ballots.get(form.layer.key), cost))
    gains = [0.0]
    for price, whole in prices:
        without = rest + sum(min(i.cost + i.error / price for i in ballot.items) for ballot in own)
        gains.append((without - min(i.cost + i.error / price for i in expected)) / whole)
    return max(gains)


def _expected(form: Form, moved: float, ballot: Ballot | None, cost: Cost) -> Iterator[Item]:
    """Yield what a form is expected to cost and to do to the outputs, undecomposed and decomposed."""
    whole, layer = cost(form.layer, form.whole), form.narrow
    yield Item(moved, whole)
    if ballot is None:
        return
    share = layer.n_params / form.layer.target.group.layer.n_params
    before = max(0.0, whole - share * ballot.items[0].cost)  # of the layers that make the channels
    for parts, item in zip(ballot.alternatives[1:], ballot.items[1:], strict=True):
        ((_, option),) = parts
        candidate = option.candidate
        if form.takes(candidate):
            left = chain_params(candidate.method.plan(layer, candidate.ranks)) / candidate.n_params
            yield Item(moved + item.error, before + left * item.cost)


def joined(ballots: Sequence[Ballot], dense: float, priced: Sequence[Priced]) -> Ballot:
    """Return what layers may become that are chosen together: each by itself, or all in a form.

    Args:
        ballots: What they may become by themselves, of those that may.
        dense: What all of them cost as they are.
        priced: What their forms may become.
    """
    rest = _rest(dense, ballots)
    found: list[Priced] = [
        (
            tuple(part for parts, _ in own for part in parts),
            Item(sum(item.error for _, item in own), rest + sum(item.cost for _, item in own)),
        )
        for own in product(*(zip(b.alternatives, b.items, strict=True) for b in ballots))
    ]
    least = inf
    kept = list[Priced]()
    for parts, item in sorted([*found, *priced], key=lambda pair: (pair[1].cost, pair[1].error)):
        if item.error < least:
            kept.append((parts, item))
            least = item.error
    return Ballot([parts for parts, _ in kept[::-1]], [item for _, item in kept[::-1]])


def _rest(dense: float, ballots: Sequence[Ballot]) -> float:
    """Return what those of some layers cost that have no choice of their own.

    Nothing at the least: all of them together were timed at another time than each by itself.
    """
    return max(0.0, dense - sum(ballot.items[0].cost for ballot in ballots))
