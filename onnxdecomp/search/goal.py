"""What a search aims at, and what options cost in that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from onnxdecomp.config import Config
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.methods.base import Chain, Ranks
from onnxdecomp.ranks.study import Candidate
from onnxdecomp.runtime.in_place import Form, InPlace, profile_variants
from onnxdecomp.runtime.int8.quantize import as_fast_as_int8
from onnxdecomp.runtime.latency import random_numbers
from onnxdecomp.runtime.latency_table import STEADY
from onnxdecomp.runtime.machine import usable_cores
from onnxdecomp.runtime.observe import node_times
from onnxdecomp.runtime.session import Feeds
from onnxdecomp.search.auto import Cost
from onnxdecomp.search.options import LayerOptions, Option
from onnxdecomp.search.replacement import Replacement
from onnxdecomp.search.subject import name_of
from onnxdecomp.search.trial import Trials

DEFAULT_MAX_DROP = 0.01
"""Budget of accuracy when none is given, in the unit of the metric: one percentage point of top-1."""

FLOAT_SHARE = 0.7
"""Share of the accuracy budget that decomposition may use when INT8 or clustering comes after it."""

PROFILE_SECONDS, PROFILE_SECONDS_OF_LARGE = 12.0, 6.0
"""Most time that profiling whole models takes, and those whose runs are long."""

KIND = "in-place"
"""The kind of what it said in the cache."""


@dataclass(frozen=True)
class Goal:
    """Either a budget of accuracy, or a target as a share of the original's cost; or both.

    Args:
        max_drop: Largest drop in the unit of the metric; None when only the target counts.
        target: ``latency``, ``macs`` or ``size``; None when only the drop counts.
        share: Cost of the whole model to be reached, as a share of the original's.
    """

    max_drop: float | None
    target: str | None = None
    share: float = 1.0

    @classmethod
    def of(cls, config: Config) -> "Goal":
        """Return the goal of a configuration."""
        for name in ("latency", "macs", "size"):
            share = getattr(config, f"target_{name}")
            if share is not None:
                return cls(config.max_drop, name, share)
        return cls(DEFAULT_MAX_DROP if config.max_drop is None else config.max_drop)


def goal_of_ranks(config: Config) -> Goal:
    """Return the goal of a decomposition, which leaves a part of the budget to what comes after it.

    Bytes to be reached are left to the clustering where that chooses its bits.
    """
    goal = Goal.of(config)
    if config.cluster == "auto" and goal.target == "size":
        goal = Goal(DEFAULT_MAX_DROP if goal.max_drop is None else goal.max_drop)
    if goal.max_drop is not None and (config.clusters or (config.int8 and not is_for_int8(config))):
        goal = replace(goal, max_drop=FLOAT_SHARE * goal.max_drop)
    return goal


def counted(config: Config) -> str | None:
    """Return what the cost of a decomposition is counted in, as `cost_of` takes it.

    Where codebooks of the fewest bytes are looked for afterwards, bytes count before them too.
    """
    target = goal_of_ranks(config).target
    return "size" if target is None and config.cluster == "auto" else target


def is_for_int8(config: Config) -> bool:
    """Tell whether layers are chosen by what they cost in INT8: the fastest model in that is looked for."""
    is_searched = config.rank == "auto" and config.calibration is not None and not config.has_target
    return config.int8 and is_searched and config.finetune is None


@dataclass(frozen=True)
class InPlaceCosts:
    """Milliseconds of layers and of their options inside the whole model.

    Args:
        dense_ms: By name of the layer; several sites that share a weight count together, and so do layers
            that are replaced together.
        option_ms: By name of the layer, method and ranks.
        total_ms: All nodes of the original.
    """

    dense_ms: dict[str, float]
    option_ms: dict[tuple[str, str, Ranks], float]
    total_ms: float

    def with_those(self, other: "InPlaceCosts") -> "InPlaceCosts":
        """Return these with what was measured at another time, when the whole original took otherwise."""
        share = self.total_ms / other.total_ms
        dense_ms = {name: share * ms for name, ms in other.dense_ms.items()}
        option_ms = {name: share * ms for name, ms in other.option_ms.items()}
        return InPlaceCosts({**self.dense_ms, **dense_ms}, {**self.option_ms, **option_ms}, self.total_ms)


def costs_in_place(
    layers: Sequence[LayerOptions], trials: Trials, feeds: Feeds, *, in_int8: bool = False
) -> InPlaceCosts:
    """Return what layers and options cost inside the whole model, profiled now when it is not known.

    What was measured at a bad moment is measured again by the next search, as latencies of layers alone are.

    Args:
        layers: The layers.
        trials: Builds models.
        feeds: A complete set of inputs.
        in_int8: Profile all models in INT8.

    Raises:
        ModelError: One of them has no form in INT8.
    """
    options = {layer.name: next(iter(layer.options.values())) for layer in layers}
    names = {name: [name_of(option.candidate) for option in own] for name, own in options.items()}
    shapes = {name: np.shape(array) for name, array in feeds.items()}
    key = {"options": names, "feeds": shapes, "threads": trials.threads, "usable_cores": usable_cores()}
    form = partial(as_fast_as_int8, feeds=feeds, threads=trials.threads) if in_int8 else None
    if in_int8:
        key["in_int8"] = True
    found = trials.memory.get(KIND, key)
    if found is None:
        found, steady = _profiled(layers, options, trials, feeds, form)
        if steady:
            trials.memory.put(KIND, key, found)
    option_ms = {
        (name, option.candidate.method.full_name, option.candidate.ranks): ms
        for name, own in options.items()
        for option, ms in zip(own, found["option_ms"][name], strict=True)
    }
    return InPlaceCosts(found["dense_ms"], option_ms, found["total_ms"])


def _profiled(
    layers: Sequence[LayerOptions],
    options: Mapping[str, Sequence[Option]],
    trials: Trials,
    feeds: Feeds,
    form: Form | None,
) -> tuple[dict[str, Any], bool]:
    """Profile whole models, in the i-th of which every layer is its i-th option.

    So what is reordered between layouts counts where it happens, and all options of all layers cost as many
    models as a single layer has options, its forms included. A layer that has fewer of them stands as its
    cheapest one in the others, which is small and quick. The weights are random, which the clock does
    not see: the chains themselves may not be made yet.

    Returns:
        Milliseconds of each layer, of its options in order, and of the whole original; and whether the
        original's time varied little.
    """
    variants = _together(layers, options)
    if not variants:
        spent_ms = node_times(trials.original, feeds, trials.threads)
        return {"dense_ms": {}, "option_ms": {}, "total_ms": sum(spent_ms.values())}, False
    replaced = (
        {
            part.key: _stand_in(part.target.group, option.candidate)
            for layer, place in [*variant, *_cheapest_rest(variant, layers)]
            for part, option in layer.parts(options[layer.name][place])
        }
        for variant in variants
    )  # one at a time: all of them together may be many times as large as the model
    seconds = PROFILE_SECONDS_OF_LARGE if trials.looks_are_long else PROFILE_SECONDS
    seconds_each = seconds / (len(variants) + 1)
    with trials.side_by_side(replaced) as models:
        original, others = profile_variants(
            trials.original, models, feeds, trials.threads, seconds_each=seconds_each, form=form
        )

    def spent(cost: InPlace, layer: LayerOptions) -> float:
        return sum(cost.layers_ms.get(site.layer.key, 0.0) for group in layer.groups for site in group.sites)

    option_ms = {name: [0.0] * len(own) for name, own in options.items()}
    for variant, cost in zip(variants, others, strict=True):
        for layer, place in variant:
            option_ms[layer.name][place] = spent(cost, layer)
    found = {
        "dense_ms": {layer.name: spent(original, layer) for layer in layers},
        "option_ms": option_ms,
        "total_ms": original.kernels_ms,
    }
    return found, 2 * original.wall.spread_ms <= STEADY * original.wall.median_ms


def _together(
    layers: Sequence[LayerOptions], options: Mapping[str, Sequence[Option]]
) -> list[list[tuple[LayerOptions, int]]]:
    """Return models that have every option of every layer once: each in the first that it fits into."""
    found: list[list[tuple[LayerOptions, int]]] = []
    taken: list[set[str]] = []
    for layer in layers:
        keys = {group.layer.key for group in layer.groups}
        for place in range(len(options[layer.name])):
            number = next((n for n, others in enumerate(taken) if others.isdisjoint(keys)), len(taken))
            if number == len(taken):
                taken.append(set())
                found.append([])
            taken[number] |= keys
            found[number].append((layer, place))
    return found


def _cheapest_rest(
    variant: Sequence[tuple[LayerOptions, int]], layers: Sequence[LayerOptions]
) -> list[tuple[LayerOptions, int]]:
    """Return the cheapest option of each layer that a model has none of."""
    taken = {group.layer.key for layer, _ in variant for group in layer.groups}
    found = []
    for layer in layers:
        keys = {group.layer.key for group in layer.groups}
        if taken.isdisjoint(keys):
            found.append((layer, -1))
            taken |= keys
    return found


def _stand_in(group: LayerGroup, candidate: Candidate) -> Replacement:
    """Return a chain of random weights that keep the size of what they are given."""
    rng = np.random.default_rng(0)
    weights = tuple(
        random_numbers(spec.weight_shape, prod(spec.weight_shape[1:]) / 2, rng, np.float32)
        for spec in candidate.specs
    )
    chain = Chain(group.layer, candidate.method.full_name, candidate.ranks, candidate.specs, weights)
    n_outputs = candidate.specs[-1].weight_shape[0]
    return Replacement(group, chain, np.zeros(n_outputs) if n_outputs < group.layer.out_channels else None)


def cost_of(target: str | None, in_place: InPlaceCosts) -> Cost:
    """Return what counts the cost of options: milliseconds inside the model, unless a target says else."""

    def n_macs(layer: LayerOptions, option: Option | None) -> float:
        if option is None:
            return float(sum(site.layer.n_macs or 0 for group in layer.groups for site in group.sites))
        parts = layer.parts(option)
        return float(sum(len(p.target.group.sites) * (o.candidate.n_macs or 0) for p, o in parts))

    def size_bytes(layer: LayerOptions, option: Option | None) -> float:
        if option is None:
            return float(sum(group.stored_bytes for group in layer.groups))
        return float(sum(own.size_bytes for _, own in layer.parts(option)))

    def latency_ms(layer: LayerOptions, option: Option | None) -> float:
        if option is None:
            return in_place.dense_ms[layer.name]
        candidate = option.candidate
        return in_place.option_ms[layer.name, candidate.method.full_name, candidate.ranks]

    return {"macs": n_macs, "size": size_bytes}.get(target or "", latency_ms)
