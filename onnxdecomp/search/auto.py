"""Choose for all layers at once: as cheap as an accuracy budget allows, or as accurate as a cost allows.

The predicted divergences of the layers add up, so a knapsack finds the choice for every budget of cost. For
``max_drop`` that budget is found with real evaluations (`limit`), and the choice is confirmed on samples that
it was not made on; where they disagree a weaker choice is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isfinite

from onnxdecomp.ranks.knapsack import Option as Item
from onnxdecomp.ranks.knapsack import choose
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.search.limit import RESOLUTION, ROUGH_RESOLUTION, Look, next_budget
from onnxdecomp.search.options import LayerOptions, Option, Part, complete, replacements
from onnxdecomp.search.recover import recover
from onnxdecomp.search.replacement import Replacement
from onnxdecomp.search.sensitivity import Curve, best_fit, curves_of
from onnxdecomp.search.track import Track, untracked
from onnxdecomp.search.trial import Trials

MAX_LOOKS, MAX_LOOKS_AT_LARGE = 6, 4
"""Choices that are evaluated to find the one that just keeps a budget, and of models whose looks are long;
about three are, as a rule."""

MAX_AFTER, MAX_AFTER_AT_LARGE = 2, 1
"""Choices that are tried after one that held on other samples and left much of the budget."""

SAME_DIVERGENCE = 1.05
"""A divergence below this many times another one is about the same."""

N_PROBES, N_PROBES_OF_LARGE = 3, 2
"""Options of each layer whose divergence is measured, and of models whose looks are long; and one more for
every further method."""


@dataclass(frozen=True)
class Weighed:
    """A layer with what its options are expected to do to the network.

    Args:
        layer: The layer.
        options: Its options, in the fit that serves the network best.
        curves: How far the outputs move, over the error of an option, by name of the method.
    """

    layer: LayerOptions
    options: list[Option]
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Ballot:
    """What a layer may become, or layers that are chosen together, and what that costs and is expected to do.

    Args:
        alternatives: What is replaced by each; the first replaces nothing.
        items: The same for the knapsack.
    """

    alternatives: list[tuple[Part, ...]]
    items: list[Item]


@dataclass
class Pick:
    """A choice for all layers.

    Args:
        chosen: Index of each ballot's item.
        replaced: What is replaced, by key of the layer.
        parts: The layers that are replaced with the options chosen, by key.
        cost: Total cost as the knapsack counts it.
        drop: What it loses on the samples that decide.
        divergence: How far the outputs move there.
        recovered: Names of the recovery steps that helped.
    """

    chosen: list[int]
    replaced: dict[str, Replacement]
    parts: dict[str, Part]
    cost: float
    drop: Drop
    divergence: float
    recovered: list[str] = field(default_factory=list)

    def beside(self, key: str) -> tuple[str, ...]:
        """Return the keys of the layers that are replaced with a layer or not at all."""
        together = [{group.layer.key for group in layer.groups} for layer, _ in self.parts.values()]
        return tuple(other for keys in together if key in keys for other in sorted(keys - {key}))


Cost = Callable[[LayerOptions, Option | None], float]
"""Cost of an option of a layer, or of the layer itself, what is beside it included."""

Priced = tuple[tuple[Part, ...], Item]
"""What is replaced, and what that costs and is expected to do."""


def weighed(layers: Sequence[LayerOptions], trials: Trials, track: Track = untracked) -> list[Weighed]:
    """Measure what each layer's options do to the network's output, and choose its fit by that.

    Args:
        layers: The layers.
        trials: Evaluates.
        track: Shows progress over the layers.
    """
    n_probes = N_PROBES_OF_LARGE if trials.looks_are_long else N_PROBES
    diverge = partial(divergence, trials)
    fits = [best_fit(layer, partial(diverge, roughly=True)) for layer in track(layers, "choosing fits")]
    complete(list(zip(layers, fits, strict=True)), trials.jobs, track)
    return [
        Weighed(layer, layer.options[fit], curves_of(layer, fit, diverge, n_probes))
        for layer, fit in zip(track(layers, "weighing layers"), fits, strict=True)
    ]


def divergence(trials: Trials, layer: LayerOptions, option: Option, *, roughly: bool = False) -> float:
    """Return how far the outputs move where one layer becomes an option, and what is beside it its own."""
    return trials.divergence(replacements(layer.parts(option)), roughly=roughly)


def ballot(weighed: Weighed, cost: Cost) -> Ballot:
    """Return the options of a layer that cost less than it."""
    dense = Item(0.0, cost(weighed.layer, None))
    worth = [(parts, item) for parts, item in priced(weighed, cost) if item.cost < dense.cost]
    return Ballot([(), *(parts for parts, _ in worth)], [dense, *(item for _, item in worth)])


def priced(weighed: Weighed, cost: Cost) -> list[Priced]:
    """Return what is replaced by each option of a layer, and what that costs and is expected to do.

    Options that are expected to break the outputs are none.
    """
    layer, curves = weighed.layer, weighed.curves
    found = [
        (layer.parts(option), Item(curves[option.candidate.method.name](option.error), cost(layer, option)))
        for option in weighed.options
    ]
    return [(parts, item) for parts, item in found if isfinite(item.error)]


class Search:
    """Finds choices at costs and judges them by evaluation.

    Args:
        ballots: The layers.
        trials: Evaluates.
        steps: Names of the recovery steps that may be tried.
        order: Keys of the layers in the order of the model.
    """

    def __init__(
        self, ballots: Sequence[Ballot], trials: Trials, steps: Sequence[str], order: Sequence[str]
    ) -> None:
        self._ballots, self._trials, self._steps = list(ballots), trials, tuple(steps)
        self._place = {key: place for place, key in enumerate(order)}
        self._recovers_looks = not trials.looks_are_long
        self._max_after = MAX_AFTER_AT_LARGE if trials.looks_are_long else MAX_AFTER
        self._trusted: str | None = None
        self.dense_cost = sum(ballot.items[0].cost for ballot in ballots)
        self.least_cost = sum(min(item.cost for item in ballot.items) for ballot in ballots)

    def at_cost(self, budget: float, *, recovering: bool = False) -> Pick | None:
        """Return the choice of least predicted divergence at a cost, evaluated; None when it is too low."""
        chosen = choose([ballot.items for ballot in self._ballots], budget)
        if chosen is None:
            return None
        if not recovering or self._trusted:
            return self._evaluated(chosen, self._trusted if recovering else None)
        return self._recovered(self._evaluated(chosen))

    def _evaluated(self, chosen: list[int], step: str | None = None) -> Pick:
        """Return the choice of these items, evaluated; after a step of recovery if one is named."""
        paired = list(zip(self._ballots, chosen, strict=True))
        found = [part for ballot, index in paired for part in ballot.alternatives[index]]
        parts = {part[0].key: part for part in sorted(found, key=lambda part: self._place[part[0].key])}
        replaced = replacements(parts.values())
        cost = sum(ballot.items[index].cost for ballot, index in paired)
        if not (step and replaced):
            return Pick(chosen, replaced, parts, cost, *self._trials.compared(replaced))
        replaced = recover(step, replaced, self._trials)
        return Pick(chosen, replaced, parts, cost, *self._trials.compared(replaced), [step])

    def within_drop(self, max_drop: float) -> Pick | None:
        """Return the cheapest choice found whose drop stays within a budget; None when only nothing does.

        Every choice that is looked at has been recovered, where that takes no longer than to look, by what
        helped the one before. What all of them are expected to lose is reckoned anew after each one.
        """
        tried: list[tuple[float, Pick]] = []
        for _ in range(MAX_LOOKS_AT_LARGE if self._trials.looks_are_long else MAX_LOOKS):
            looks = [self._look(budget, pick, self._expected(pick)) for budget, pick in tried]
            following = self._following(looks, max_drop)
            if following is None:
                break
            tried.append(following)
        picks = sorted((pick for _, pick in tried), key=lambda pick: pick.cost)
        accepted = [pick for pick in picks if self._expected(pick) <= max_drop]
        if not picks:
            return None
        found = self._confirmed((accepted or picks[-1:])[0], max_drop)
        return found if found is None else self._as_helped(found, max_drop)

    def _look(self, budget: float, pick: Pick, lost: float) -> Look:
        return Look(budget, pick.cost, self._predicted(pick.chosen), lost)

    def _following(
        self, looks: Sequence[Look], max_drop: float, resolution: float = RESOLUTION
    ) -> tuple[float, Pick] | None:
        """Return the budget of cost to look at next, and the choice there; None when there is no need to."""
        least, most = max(self.least_cost, 1e-9), max(self.dense_cost, 1e-9)
        budget = next_budget(looks, self._predicted_at, least, most, max_drop, resolution)
        pick = None if budget is None else self.at_cost(budget, recovering=self._recovers_looks)
        return None if budget is None or pick is None else (budget, pick)

    def _expected(self, pick: Pick) -> float:
        """Return what a choice is expected to lose."""
        return self._trials.expected(pick.drop, pick.divergence)

    def _predicted(self, chosen: Sequence[int]) -> float:
        """Return what a choice was predicted to lose."""
        divergence = sum(
            ballot.items[index].error for ballot, index in zip(self._ballots, chosen, strict=True)
        )
        return self._trials.proportion.at(divergence)

    def _predicted_at(self, budget: float) -> float:
        """Return the least that is predicted to be lost at a cost."""
        chosen = choose([ballot.items for ballot in self._ballots], budget)
        return inf if chosen is None else self._predicted(chosen)

    def _confirmed(self, pick: Pick, max_drop: float) -> Pick | None:
        """Return the cheapest choice found that holds on samples it was not chosen on; None when none does.

        There it must not lose more than the budget, and over all samples together not more with the standard
        error added (`Drop.held`). From what choices lose there it is reckoned which one is tried next: weaker
        ones until one holds, and then some stronger ones, if it leaves much of the budget.

        Args:
            pick: The choice that is tried first.
            max_drop: The budget.
        """
        held: dict[tuple[int, ...], tuple[Pick, float, float]] = {}
        looks: list[Look] = []
        found, n_left, budget = None, self._max_after, pick.cost
        while pick.replaced:
            key = tuple(pick.chosen)
            if key not in held:
                held[key] = self._held(pick, max_drop)
            pick, lost, likely_lost = held[key]
            looks.append(self._look(budget, pick, likely_lost))
            if lost <= max_drop and (found is None or pick.cost < found.cost):
                found = pick
            if found is not None and not n_left:
                break
            n_left -= found is not None
            following = self._following(looks, max_drop, ROUGH_RESOLUTION)
            if following is None:
                break
            budget, pick = following
        return found

    def _held(self, pick: Pick, max_drop: float) -> tuple[Pick, float, float]:
        """Return a choice with its drop on samples it was not chosen on, and the most it is held to lose.

        The third is what stronger choices are reckoned from. A choice may hold by what says least of its
        loss, counts or beliefs; both together tell better how far the next one may go.
        """
        if not self._recovers_looks:
            pick = self._recovered(pick)
        drop = self._trials.confirmed_with(pick.replaced)
        lost = drop.held(pick.drop)
        likely_lost = max(lost, drop.pooled(pick.drop).likely()[0])
        return replace(pick, drop=drop), lost, min(likely_lost, max_drop) if lost <= max_drop else lost

    def _as_helped(self, pick: Pick, max_drop: float) -> Pick:
        """Return a choice that holds with what helps itself, where that is not what helped the one before."""
        if not (pick.recovered and self._recovers_looks):
            return pick
        other = self._recovered(self._evaluated(pick.chosen))
        if other.recovered == pick.recovered:
            return pick
        other, lost, _ = self._held(other, max_drop)
        return other if lost <= max_drop else pick

    def _recovered(self, pick: Pick) -> Pick:
        """Return a choice that was not recovered after the strongest recovery that helps it.

        That is one which moves the outputs nearer to the original's, or loses less without moving them much
        further away: what a drop says in whole samples, the divergence says with less noise. One that moves
        them much further away, as where the samples are few, is not tried again on other choices.
        """
        for step in self._steps if pick.replaced else ():
            other = self._evaluated(pick.chosen, step)
            is_near = other.divergence < SAME_DIVERGENCE * pick.divergence
            if other.divergence < pick.divergence or (is_near and other.drop.value < pick.drop.value):
                self._trusted = step
                return other
            if not is_near:
                self._steps = tuple(name for name in self._steps if name != step)
        self._trusted = None
        return pick
