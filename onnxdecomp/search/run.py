"""Search a whole network: from calibration samples to a decision for every layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from onnxdecomp.config import Config
from onnxdecomp.errors import BudgetError
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.weights import weight_problem
from onnxdecomp.ranks.fastest import Fastest
from onnxdecomp.report.outcome import Accuracy
from onnxdecomp.runtime.activations import gather_moments
from onnxdecomp.runtime.machine import usable_cores
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.runtime.session import read_proto
from onnxdecomp.search.auto import Pick, Search, ballot, weighed
from onnxdecomp.search.goal import Goal, InPlaceCosts, cost_of, costs_in_place, counted
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.options import MAX_OPTIONS, MAX_OPTIONS_OF_LARGE, LayerOptions, find_options
from onnxdecomp.search.parts import read_parts
from onnxdecomp.search.recover import LIGHT_STEPS, STEPS
from onnxdecomp.search.subject import Subject
from onnxdecomp.search.track import Track, untracked, watched
from onnxdecomp.search.trial import Trials
from onnxdecomp.selection import Decision, Target, decide, new_study, open_cache, rank_step, timed_inputs
from onnxdecomp.weights.fit import FEW_FITS, FITS
from onnxdecomp.weights.moments import Moments

LATENCY_AIM = 0.95
"""Share of a latency to be reached that the choice aims at: a run takes some time between its nodes too."""

LEAST_MAX_OPTIONS, VARIANT_BYTES = 8, 5 * 2**29
"""Options of each layer in a model so large that as many copies of it as options take more than this."""

BARELY_FASTER = 0.999
"""Cost over the original's of the choice that loses least of those that are faster."""

NO_DATA = (
    "there are no moments of its input (it stands inside a body, met values that are not finite, or is too "
    "large), and only fitted layers are searched"
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


def open_trials(model: Model, targets: Sequence[Target], config: Config) -> Trials:
    """Run the original on the samples of a configuration.

    Args:
        model: The original.
        targets: Its layers, whose MACs say how long it takes to run.
        config: Samples, metric and how to run.

    Raises:
        UsageError: The samples or the metric do not fit the model.
    """
    parts = read_parts(config, read_proto(model.path or model.proto))
    memory = Memory(
        open_cache(config.cache), model, (parts.fit, parts.choose, parts.confirm), {"seed": config.seed}
    )
    n_macs = sum(site.layer.n_macs or 0 for target in targets for site in target.group.sites)
    return Trials(
        model,
        parts,
        config.metric,
        config.threads,
        memory,
        n_macs=n_macs,
        jobs=_n_jobs(config),
        seed=config.seed,
    )


def gathered(
    model: Model, targets: Sequence[Target], trials: Trials, config: Config, track: Track = untracked
) -> dict[str, Moments]:
    """Return the moments of the layers' inputs on the samples to fit to, by key."""
    gather = partial(
        gather_moments,
        trials.original,
        samples=trials.fit_samples,
        jobs=trials.jobs,
        seed=config.seed,
        track=track,
    )
    return trials.memory.moments([target.group for target in targets if not target.reason], gather)


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
        self._layers, self._reasons = _options(live, self._moments, trials, config, track)
        trials.searched = [layer.target.group for layer in self._layers]
        self._costs = {False: self._profiled(in_int8=False)}
        self._weighed = weighed(self._layers, trials, track)

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
            self._costs[in_int8] = self._profiled(in_int8=in_int8)
        in_place = self._costs[in_int8]
        cost = cost_of(counted(self._config), in_place)
        trials = self._trials
        known = LIGHT_STEPS if trials.looks_are_long else STEPS
        steps = [step for step in known if step not in self._config.without]
        order = [target.group.layer.key for target in self._targets]
        search = Search([ballot(one, cost) for one in self._weighed], trials, steps, order)
        with watched(trials, self._track, "searching"):
            pick = _pick(search, goal, in_place.total_ms, self._config)
            notes = [] if pick else [_no_slack(search, goal, trials)]
        notes += _coarseness(goal, trials)
        decisions = [(target, self._decided(target, pick)) for target in self._targets]
        return Searched(decisions, tuple(pick.recovered) if pick else (), notes)

    def _profiled(self, *, in_int8: bool) -> InPlaceCosts:
        with watched(self._trials, self._track, "profiling in INT8" if in_int8 else "profiling"):
            feeds = timed_inputs(self._trials.original, self._config)
            return costs_in_place(self._layers, self._trials, feeds, in_int8=in_int8)

    def _decided(self, target: Target, pick: Pick | None) -> Decision:
        if isinstance(target.policy, Fastest):
            return _decision(target, pick, self._reasons)
        return decide(target, self._config, self._moments.get(target.group.layer.key))


def measured(trials: Trials, converted: RuntimeModel, config: Config) -> Accuracy:
    """Return what a converted model loses on the samples that no decision was made on."""
    drop = trials.confirmed(converted)
    by_margins = drop.smoothed is not None and not drop.is_ceiling
    searched = "auto" in (config.rank, config.cluster)
    budget = Goal.of(config).max_drop if searched else config.max_drop
    return Accuracy(
        trials.metric.name,
        trials.parts.description,
        drop.before,
        drop.after,
        drop.value,
        drop.standard_error,
        budget,
        drop.n_samples,
        drop.smoothed if by_margins else None,
        drop.smoothed_error if by_margins else None,
    )


def _options(
    targets: Sequence[Target], moments: dict[str, Moments], trials: Trials, config: Config, track: Track
) -> tuple[list[LayerOptions], dict[str, str]]:
    """Return the options of the layers that have some, and why the others have none by key."""
    block = rank_step(config) if targets else None
    found = [_subject(target, moments.get(target.group.layer.key), config, block) for target in targets]
    reasons = {
        target.group.layer.key: one
        for target, one in zip(targets, found, strict=True)
        if isinstance(one, str)
    }
    is_large = trials.looks_are_long
    tried = FEW_FITS if is_large else FITS
    fits = list(dict.fromkeys(fit.without(config.without) for fit in tried))
    subjects = [one for one in found if isinstance(one, Subject)]
    made = find_options(
        subjects,
        fits,
        jobs=_n_jobs(config),
        track=track,
        memory=trials.memory,
        max_options=min(
            MAX_OPTIONS_OF_LARGE if is_large else MAX_OPTIONS,
            max(LEAST_MAX_OPTIONS, VARIANT_BYTES // trials.size_bytes),
        ),
    )
    for subject, one in zip(subjects, made, strict=True):
        if isinstance(one, str):
            reasons[subject.target.group.layer.key] = one
    return [one for one in made if isinstance(one, LayerOptions)], reasons


def _subject(target: Target, moments: Moments | None, config: Config, block: int | None) -> Subject | str:
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


def _n_jobs(config: Config) -> int:
    return config.jobs or usable_cores()


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
    mildest = search.at_cost(BARELY_FASTER * search.dense_cost)
    reached = ""
    if mildest is not None and mildest.replaced:
        drop = trials.confirmed_with(mildest.replaced).pooled(mildest.drop)
        reached = f" The mildest one that is faster loses {drop.value:.3g} ± {drop.standard_error:.2g}."
    return (
        f"This network has no low-rank slack at this budget: no choice that is faster loses at most "
        f"{goal.max_drop:g} of {trials.metric.name}, standard error included, on {trials.parts.description}."
        f"{reached} More samples or a larger --max-drop may help."
    )


def _coarseness(goal: Goal, trials: Trials) -> list[str]:
    """Return what to say when the budget is less than a single answer: luck then has a part in the choice."""
    n_answers, name = trials.n_answers, trials.metric.name
    if not goal.max_drop or trials.metric.unit != "share" or n_answers * goal.max_drop >= 1:
        return []
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
    )
