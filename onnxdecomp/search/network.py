"""Search a whole network: from calibration samples to a decision for every layer."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain

from onnxdecomp.config import Config
from onnxdecomp.errors import BudgetError
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.weights import weight_problem
from onnxdecomp.ranks.fastest import Fastest
from onnxdecomp.runtime.compared_outputs import described
from onnxdecomp.runtime.machine import channel_block
from onnxdecomp.search.auto import Ballot, Cost, Pick, Search, Weighed, ballot, priced, weighed
from onnxdecomp.search.forms import Form, find_forms
from onnxdecomp.search.goal import Goal, InPlaceCosts, cost_of, costs_in_place, counted
from onnxdecomp.search.options import (
    MAX_OPTIONS,
    MAX_OPTIONS_OF_LARGE,
    TIMED_FOR_EACH,
    TIMED_FOR_EACH_OF_LARGE,
    LayerOptions,
    find_options,
)
from onnxdecomp.search.pruning import joined, worth_decomposing
from onnxdecomp.search.recover import LIGHT_STEPS, STEPS
from onnxdecomp.search.run import gathered, n_jobs
from onnxdecomp.search.subject import Subject
from onnxdecomp.search.track import Track, untracked, watched
from onnxdecomp.search.trial import NOT_COMPARED, Trials
from onnxdecomp.selection import Decision, Target, decide, new_study, rank_step, timed_inputs
from onnxdecomp.weights.fit import FEW_FITS, FITS
from onnxdecomp.weights.moments import Moments

LATENCY_AIM = 0.95
"""Share of a latency to be reached that the choice aims at: a run takes some time between its nodes too."""

LEAST_MAX_OPTIONS, VARIANT_BYTES = 8, 5 * 2**29
"""Options of each layer in a model so large that as many copies of it as options take more than this."""

BARELY_FASTER = 0.999
"""Cost over the original's of the choice that loses least of those that are faster."""

MAX_FORM_OPTIONS = 12
"""Options of a layer with fewer channels."""

NOT_LOOKED_INTO = 0.05
"""Share of all that layers could save which is given up where looks take long: that of those that save least.

Each layer takes several looks, and in networks of a hundred layers half of them may save next to nothing.
"""

LONG_LOOKS = 1e12
"""Multiply-accumulates of one look at each layer, above which all looks together take long."""

PRUNING = "pruning"
"""The step that takes channels out, as `Config.without` calls it."""

NO_DATA = (
    "there are no moments of its input (it stands inside a body, met values that are not finite, or is too "
    "large), and only fitted layers are searched"
)

NOT_WORTH_LOOKS = (
    "it could save next to nothing, and in a model that takes this long to look into only layers that could "
    "save more were"
)


@dataclass
class Searched:
    """What a search found.

    Args:
        decisions: One per target, in their order, made as they are asked for or before.
        recovered: Steps of closed-form recovery that helped.
        notes: Sentences the user should read.
    """

    decisions: Iterable[tuple[Target, Decision]]
    recovered: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


class NetworkSearch:
    """Chooses methods, ranks and fits of all layers together, for one goal or several in turn.

    What does not depend on the goal is found out first: what layers may become, what that costs inside the
    model, and what it does to the outputs.

    Args:
        model: The model.
        targets: Its layers; those with a policy of their own follow that.
        trials: The samples, and the original on them.
        config: What is counted as cost, and what is switched off.
        track: Shows how far each stage is.
    """

    def __init__(
        self,
        model: Model,
        targets: Sequence[Target],
        trials: Trials,
        config: Config,
        track: Track = untracked,
    ) -> None:
        self._targets, self._trials, self._config, self._track = targets, trials, config, track
        self._moments = gathered(model, targets, trials, config, track)
        live = [target for target in targets if not target.reason and isinstance(target.policy, Fastest)]
        block = rank_step(config) if live else channel_block()
        unseen = trials.unseen(model.proto.graph)
        subjects, self._reasons = _subjects(live, unseen, self._moments, config, block)
        most = MAX_OPTIONS_OF_LARGE if trials.looks_are_long else MAX_OPTIONS
        found = self._options(subjects, most)
        layers = [one for one in found if isinstance(one, LayerOptions)]
        for subject, one in zip(subjects, found, strict=True):
            if isinstance(one, str):
                self._reasons[subject.target.group.layer.key] = one
        forms = self._forms(model, subjects, block)
        changed = {layer.key: layer.target.group for layer in [*layers, *(form.layer for form in forms)]}
        trials.searched = list(changed.values())
        self._costs = {False: self._profiled([*layers, *(form.layer for form in forms)])}
        small = self._not_worth_looks(layers)
        self._reasons |= dict.fromkeys(small, NOT_WORTH_LOOKS)
        looked_into = [layer for layer in layers if layer.key not in small]
        self._weighed = {one.layer.key: one for one in weighed(looked_into, trials, track)}
        self._pruned = self._worth_pruning([form for form in forms if form.layer.key not in small])

    def chosen(self, goal: Goal, *, in_int8: bool = False) -> Searched:
        """Return a decision for every target.

        Args:
            goal: What is looked for.
            in_int8: Count milliseconds in INT8.

        Raises:
            BudgetError: A target cannot be reached, or costs more accuracy than allowed, and `force` is off.
            ModelError: The model has no form in INT8.
        """
        if in_int8 not in self._costs:
            layers = [one.layer for one in [*self._weighed.values(), *chain(*self._pruned)]]
            self._costs[in_int8] = self._profiled(layers, in_int8=in_int8)
        in_place = self._costs[in_int8]
        trials = self._trials
        known = LIGHT_STEPS if trials.looks_are_long else STEPS
        steps = [step for step in known if step not in self._config.without]
        order = [target.group.layer.key for target in self._targets]
        search = Search(self._ballots(cost_of(counted(self._config), in_place)), trials, steps, order)
        with watched(trials, self._track, "searching"):
            pick = _pick(search, goal, in_place.total_ms, self._config)
            notes = [_no_slack(search, goal, trials)] if pick is None and self._targets else []
        notes += _coarseness(goal, trials)
        decisions = [(target, self._decided(target, pick)) for target in self._targets]
        return Searched(decisions, tuple(pick.recovered) if pick else (), notes)

    def _options(self, subjects: Sequence[Subject], max_options: int) -> list[LayerOptions | str]:
        """Return what layers may become, or why they have no choice."""
        trials, config = self._trials, self._config
        is_large = trials.looks_are_long
        tried = FEW_FITS if is_large else FITS
        return find_options(
            subjects,
            list(dict.fromkeys(fit.without(config.without) for fit in tried)),
            jobs=n_jobs(config),
            track=self._track,
            memory=trials.memory,
            max_options=min(max_options, max(LEAST_MAX_OPTIONS, VARIANT_BYTES // trials.size_bytes)),
            timed_for_each=TIMED_FOR_EACH_OF_LARGE if is_large else TIMED_FOR_EACH,
        )

    def _not_worth_looks(self, layers: Sequence[LayerOptions]) -> frozenset[str]:
        """Return the keys of layers without which almost all can be saved; none where looks are soon done.

        A target of cost may need all that there is to save.
        """
        take_long = self._trials.looks_are_long or len(layers) * self._trials.macs_of_look > LONG_LOOKS
        if self._config.has_target or not take_long:
            return frozenset()
        cost = cost_of(counted(self._config), self._costs[False])
        gains = sorted((_most_saved(layer, cost), layer.key) for layer in layers)
        allowed = NOT_LOOKED_INTO * sum(gain for gain, _ in gains)
        sums = accumulate(gain for gain, _ in gains)
        return frozenset(key for (_, key), given_up in zip(gains, sums, strict=True) if given_up <= allowed)

    def _forms(self, model: Model, subjects: Sequence[Subject], block: int) -> list[Form]:
        """Return what layers may become with fewer channels between them, undecomposed."""
        if PRUNING in self._config.without:
            return []
        memory, is_large = self._trials.memory, self._trials.looks_are_long
        return find_forms(model, self._targets, subjects, self._config, block, memory, is_large=is_large)

    def _worth_pruning(self, forms: Sequence[Form]) -> list[list[Weighed]]:
        """Return the forms that serve the network better than ranks do, with all that they may become."""
        in_place, trials = self._costs[False], self._trials
        cost = cost_of(counted(self._config), in_place)
        ballots = {key: ballot(one, cost) for key, one in self._weighed.items()}
        chosen = worth_decomposing(forms, ballots, cost, trials)
        layers = self._completed([form for same in chosen for form in same])
        if layers:
            self._costs[False] = in_place.with_those(self._profiled(layers))
        waiting = iter(weighed(layers, trials, self._track))
        return [[next(waiting) for _ in same] for same in chosen]

    def _completed(self, forms: Sequence[Form]) -> list[LayerOptions]:
        """Return forms with all of their options."""
        known = {
            form: form.with_those_of_all(self._weighed[form.layer.key].options)
            for form in forms
            if form.is_of_matrix and form.layer.key in self._weighed
        }
        others = [form for form in forms if form not in known]
        found = self._options([form.subject() for form in others], MAX_FORM_OPTIONS)
        known |= {form: form.with_options(one) for form, one in zip(others, found, strict=True)}
        return [known[form] for form in forms]

    def _ballots(self, cost: Cost) -> list[Ballot]:
        """Return what can be chosen, by costs of layers and their options."""
        found = {key: ballot(one, cost) for key, one in self._weighed.items()}
        for same in self._pruned:
            layer = same[0].layer
            own = [found.pop(group.layer.key) for group in layer.groups if group.layer.key in found]
            forms = [one for form in same for one in priced(form, cost)]
            found[layer.key] = joined(own, cost(layer, None), forms)
        return list(found.values())

    def _profiled(self, layers: Sequence[LayerOptions], *, in_int8: bool = False) -> InPlaceCosts:
        with watched(self._trials, self._track, "profiling in INT8" if in_int8 else "profiling"):
            feeds = timed_inputs(self._trials.original, self._config)
            return costs_in_place(layers, self._trials, feeds, in_int8=in_int8)

    def _decided(self, target: Target, pick: Pick | None) -> Decision:
        if isinstance(target.policy, Fastest):
            return _decision(target, pick, self._reasons)
        return decide(target, self._config, self._moments.get(target.group.layer.key))


def _subjects(
    targets: Sequence[Target],
    unseen: Collection[str],
    moments: dict[str, Moments],
    config: Config,
    block: int,
) -> tuple[list[Subject], dict[str, str]]:
    """Return what the options of layers are found from, and why others have none by key."""
    found: dict[str, Subject | str] = {}
    for target in targets:
        key = target.group.layer.key
        is_unseen = all(site.layer.key in unseen for site in target.group.sites)
        found[key] = NOT_COMPARED if is_unseen else _subject(target, moments.get(key), config, block)
    reasons = {key: one for key, one in found.items() if isinstance(one, str)}
    return [one for one in found.values() if not isinstance(one, str)], reasons


def _subject(target: Target, moments: Moments | None, config: Config, block: int) -> Subject | str:
    """Return what the options of a layer are found from, or why it has none."""
    if moments is None:
        return NO_DATA
    weight = target.group.weight()
    problem = weight_problem(weight)
    if problem:
        return problem
    if target.group.layer.in_shape is None:
        return "its input shape is unknown, so nothing can be timed: give the sizes with --shape"
    bias = None if "bias" in config.without else target.group.known_bias()
    return Subject(target, new_study(target, weight, config, block), moments, bias)


def _most_saved(layer: LayerOptions, cost: Cost) -> float:
    """Return what the cheapest option of a layer saves, 0 if none does."""
    least = min(cost(layer, option) for option in next(iter(layer.options.values())))
    return max(0.0, cost(layer, None) - least)


def _pick(search: Search, goal: Goal, total_ms: float, config: Config) -> Pick | None:
    """Return the choice that meets the goal; None when it is to keep everything."""
    if goal.target is None:
        return search.within_drop(goal.max_drop or 0.0)
    whole = total_ms if goal.target == "latency" else search.dense_cost
    rest = whole - search.dense_cost
    aim = LATENCY_AIM if goal.target == "latency" else 1.0
    pick = search.at_cost(aim * goal.share * whole - rest, recovering=True)
    if pick is None and aim < 1.0:
        pick = search.at_cost(goal.share * whole - rest, recovering=True)
    if pick is None:
        least = (search.least_cost + rest) / whole
        if not config.force:
            raise BudgetError(
                f"--target-{goal.target} {goal.share:g} cannot be reached: the strongest choice is expected "
                f"to reach {least:.3f} of the original. Nothing was written; --force writes that choice."
            )
        pick = search.at_cost(search.least_cost * (1 + 1e-9), recovering=True)
    return pick


def _no_slack(search: Search, goal: Goal, trials: Trials) -> str:
    """Return what to say when everything is kept: the budget, and the least that a faster choice loses."""
    max_drop = goal.max_drop or 0.0
    mildest = search.at_cost(BARELY_FASTER * search.dense_cost)
    tried, reached = "no choice that was tried", ""
    if mildest is not None and mildest.replaced:
        drop = trials.confirmed_with(mildest.replaced)
        if max_drop >= drop.held(mildest.drop):
            tried += " and saves more than next to nothing"
        drop = drop.pooled(mildest.drop)
        saved = 1.0 - mildest.cost / search.dense_cost
        reached = f" The mildest one, which saves {saved:.1%} of what the layers cost, loses {drop.value:.3g}"
        reached += f" ± {drop.standard_error:.2g}"
        if drop.smoothed is not None and not drop.is_ceiling:
            reached += f", by margins {drop.smoothed:.2g} ± {drop.smoothed_error:.2g}"
        reached += "."
    return (
        f"This network has no low-rank slack at this budget: {tried} loses at most {max_drop:g} of "
        f"{described(trials.metrics)}, standard error included, on {trials.parts.description}.{reached} "
        "More samples or a larger --max-drop may help."
    )


def _coarseness(goal: Goal, trials: Trials) -> list[str]:
    """Return what to say when the budget is less than a single answer: luck then has a part in the choice."""
    n_answers = trials.n_answers
    if not goal.max_drop or n_answers is None or n_answers * goal.max_drop >= 1:
        return []
    name = next(measure.name for measure in trials.metrics.values() if measure.compares == "choices")
    return [
        f"A single answer of {n_answers} is {1 / n_answers:.2g} of {name}, more than the budget of "
        f"{goal.max_drop:g}: only a model that loses none is taken. With more samples it may be faster."
    ]


def _decision(target: Target, pick: Pick | None, reasons: dict[str, str]) -> Decision:
    key = target.group.layer.key
    if pick is None or key not in pick.parts:
        return Decision(
            target.reason
            or reasons.get(key)
            or "kept by the choice across layers: its gain is not worth what it costs in accuracy"
        )
    (layer, option), replacement = pick.parts[key], pick.replaced[key]
    return Decision(
        "",
        replacement.chain,
        replace(option.candidate, error=option.error),
        layer.weight,
        replacement.bias,
        option.fit.name,
        pick.beside(key),
    )
