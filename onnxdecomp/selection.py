"""Which layers a conversion looks at, with which rank policy and methods, and what it chooses for each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from onnxdecomp.config import Config, matches
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.find import Found, LayerGroup, find_layers
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.weights import weight_problem
from onnxdecomp.layer import Geometry, Layer
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import Chain, FloatArray, Method, recompose
from onnxdecomp.ranks import parse_policy
from onnxdecomp.ranks.fixed import Fixed
from onnxdecomp.ranks.policy import Policy
from onnxdecomp.ranks.study import Candidate, Measured, Study
from onnxdecomp.runtime.cache import Cache, default_cache_folder
from onnxdecomp.runtime.evaluate import BATCH
from onnxdecomp.runtime.feeds import runnable_feeds
from onnxdecomp.runtime.latency_table import LatencyTable
from onnxdecomp.runtime.machine import channel_block
from onnxdecomp.runtime.observe import observe
from onnxdecomp.runtime.samples import batches, load_samples
from onnxdecomp.runtime.session import Array, read_proto
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.runtime.single import as_taken
from onnxdecomp.weights.fit import Data, default_fit
from onnxdecomp.weights.moments import Moments

STAIRS = Layer("stairs", "Conv", (64, 64, 3, 3), Geometry((1, 1), (1, 1), (1, 1), (1, 1)), (1, 16, 16))
"""The layer whose chains show at which ranks latency rises."""

MAX_FEED_VALUES = 2**19
"""Values of one input that a model is run on to see whether it works: three images of 240x240 in color."""

OBSERVE_LIMIT_BYTES = 2**31
"""Larger models are not run only to learn the shapes of their layers."""


@dataclass(frozen=True)
class Target:
    """Layers that share a weight, and how their ranks are to be chosen.

    Args:
        group: The layers.
        policy: Rank policy.
        methods: Methods that can decompose them.
        asked_for: True when the user named the method.
        reason: Why they are kept without a look at their weight; empty when they are studied.
    """

    group: LayerGroup
    policy: Policy
    methods: tuple[Method, ...]
    asked_for: bool
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """What was chosen for a target: a chain with its candidate, or a reason to keep the layers.

    Args:
        reason: Why the layers are kept; empty when there is a chain.
        chain: The chain.
        candidate: What the policy chose.
        weight: ``(O, I/G, *K)`` of the layer, in the channels that the chain has.
        bias: ``(O,)`` in place of the layer's; None keeps that.
        fit: How the chain was fitted to data; empty when it was not.
        beside: Keys of the layers that lost channels with this one.
    """

    reason: str = ""
    chain: Chain | None = None
    candidate: Candidate | None = None
    weight: FloatArray | None = None
    bias: FloatArray | None = None
    fit: str = ""
    beside: tuple[str, ...] = ()


def find_with_shapes(model: Model, config: Config) -> tuple[Found, list[str]]:
    """Find the layers of a model; where shape inference does not know their inputs, run the model once.

    Returns:
        What was found, and notes for the user on shapes that stay unknown.
    """
    found = find_layers(model)
    if all(group.layer.in_shape is not None for group in found.groups):
        return found, []
    if model.size_bytes > OBSERVE_LIMIT_BYTES:
        return found, ["The model is too large to be run only to learn the shapes of its layers."]
    source = model.path or model.proto
    try:
        runs = observe(source, timed_inputs(source, config), config.threads)
    except ModelError as error:
        return found, [f"Some layers have inputs of unknown shape: {error}"]
    shapes = {key: run.data_shape for key, run in runs.items() if run.data_shape is not None}
    return find_layers(model, shapes), []


def model_inputs(
    source: RuntimeModel, config: Config, n_feeds: int, batch: int = BATCH
) -> list[dict[str, Array]]:
    """Return at most `n_feeds` complete inputs: batches of the calibration samples, else a random one.

    Args:
        source: The model or its path.
        config: `calibration`, `shapes` and `seed` count.
        n_feeds: How many.
        batch: Calibration samples in each at most, where the model allows it; fewer of large ones.

    Raises:
        UsageError: The samples or the shapes given do not fit the model.
        ModelError: Nothing was given, and no random input that was tried runs the model.
    """
    if config.calibration is not None:
        proto = read_proto(source)
        samples = load_samples(config.calibration, proto)
        if batch > 1:  # a single sample is the same either way
            samples = as_taken(samples, source)
        n_values = sum(array[:1].size for array in samples.values())
        size = max(1, min(batch, MAX_FEED_VALUES // max(1, n_values)))
        return list(islice(batches(samples, proto, size), n_feeds))
    try:
        return [runnable_feeds(source, config.seed, config.shapes)]
    except UsageError as error:
        if config.shapes:
            raise
        raise ModelError(str(error)) from error


def timed_inputs(source: RuntimeModel, config: Config) -> dict[str, Array]:
    """Return one input to time a model on: a single sample where the model allows it.

    Raises:
        UsageError, ModelError: As `model_inputs`.
    """
    return model_inputs(source, config, n_feeds=1, batch=1)[0]


def plan_targets(found: Found, config: Config) -> list[Target]:
    """Give every group of layers its policy and methods, or the reason why it is not looked at.

    Raises:
        UsageError: A policy or a method does not exist, a pattern matches no layer, or a number is above
            the largest rank of every layer.
    """
    _check_patterns(found, config)
    targets = [_target(group, config) for group in found.groups]
    _check_fixed_rank([t for t in targets if not t.reason])
    return targets


def _target(group: LayerGroup, config: Config) -> Target:
    layer = group.layer
    names = [(site.layer.key, site.place.proto.name) for site in group.sites]
    rank, method = config.rule_for(*names[0], layer.op_type)
    policy, forms = parse_policy(rank, config.max_error), find_methods(method)
    refusals = {form: form.refusal(layer) for form in forms}
    usable = tuple(form for form, refusal in refusals.items() if refusal is None)
    if not all(config.selects(*name) for name in names):
        reason = "not selected by --include and --exclude"
    elif not usable:
        reason = _refused(layer, [(form.name, str(refusal)) for form, refusal in refusals.items()])
    else:
        reason = ""
    return Target(group, policy, usable, method != "auto", reason)


def _refused(layer: Layer, refusals: Iterable[tuple[str, str]]) -> str:
    """Return why methods cannot be used, those with the same reason together.

    Of a matrix the reason of the plain SVD says all: the others leave matrices to that.
    """
    found = sorted(set(refusals))
    if prod(layer.kernel) == 1:
        found = [(name, refusal) for name, refusal in found if name == "svd"] or found
    names: dict[str, list[str]] = {}
    for name, refusal in found:
        names.setdefault(refusal, []).append(name)
    return "; ".join(f"{', '.join(own)}: {refusal}" for refusal, own in names.items())


def decide(target: Target, config: Config, moments: Moments | None = None) -> Decision:
    """Study one target and choose its chain, fitted to data where there are moments of its input."""
    if target.reason:
        return Decision(target.reason)
    weight = target.group.weight()
    problem = weight_problem(weight)
    if problem:
        return Decision(problem)
    study = new_study(target, weight, config)
    bias = None if "bias" in config.without else target.group.known_bias()
    if moments is not None:
        fit = default_fit(study.layer).without(config.without)
        study.data = Data.of(study.layer, weight, moments, fit, with_bias=bias is not None)
    try:
        choice = target.policy.choose(study)
        if isinstance(choice, Candidate) and target.policy.guarded:
            choice = _guarded(choice, target.group, study, config)
    except ModelError as error:  # onnxruntime cannot run this layer alone, so nothing can be measured
        return Decision(f"it cannot be timed: {error}")
    if isinstance(choice, str):
        return Decision(choice)
    chain, final_error = study.chain(choice)
    choice = replace(choice, error=final_error)
    if study.data is None:
        return Decision("", chain, choice, weight)
    whole = recompose(chain.specs, chain.weights, study.layer.group)
    if bias is not None:
        bias = bias + study.data.metric.bias_shift(whole)
    return Decision("", chain, choice, weight, bias, study.data.fit.name)


def rank_step(config: Config) -> int:
    """Return what ranks are multiples of in a search that times: as the stairs of this machine show it."""
    (method,) = find_methods("spatial-svd/vertical-first")
    table = _latency_table(config.cache, config.threads, config.seed)
    return config.rank_multiple or table.rank_step(STAIRS, method, np.float32) or channel_block()


def new_study(target: Target, weight: FloatArray, config: Config, block: int | None = None) -> Study:
    """Return a target under study, without data; `block` is that of the processor where none is given."""
    return Study(
        target.group.layer,
        weight,
        target.methods,
        block or config.rank_multiple or channel_block(),
        config.seed,
        target.asked_for,
        partial(measure_chains, dtype=target.group.dtype, config=config),
    )


def _guarded(choice: Candidate, group: LayerGroup, study: Study, config: Config) -> Candidate | str:
    """Return a choice, with its latency, unless it makes the file larger or the layer slower."""
    growth = choice.n_params * group.dtype.itemsize - group.stored_bytes
    if growth >= 0:
        return f"its chain would take {growth:,} bytes more than the stored weight"
    if config.allow_slower or choice.measured or study.measure is None or study.layer.in_shape is None:
        return choice
    (timing,) = study.measure(study.layer, [choice])
    if timing.speedup_high < 1.0:
        return (
            f"slower: {choice.method.full_name} {list(choice.ranks)} takes {timing.chain_ms:.3g} ms, "
            f"the layer {timing.dense_ms:.3g} ms (--allow-slower takes it all the same)"
        )
    return replace(choice, measured=timing)


def measure_chains(
    layer: Layer, candidates: Sequence[Candidate], dtype: np.dtype, config: Config
) -> list[Measured]:
    """Time candidates beside the dense layer, alone and interleaved in onnxruntime, or look that up."""
    table = _latency_table(config.cache, config.threads, config.seed)
    return table.measure(layer, [candidate.specs for candidate in candidates], dtype)


def open_cache(folder: str | None) -> Cache:
    """Return the cache in a folder: the user's own one for None, one that keeps nothing for ``none``."""
    if folder == "none":
        return Cache(None)
    return _cache(Path(folder) if folder else default_cache_folder())


@cache
def _cache(folder: Path) -> Cache:
    """Return the one object for a folder, which knows what is to be said of all that use it."""
    return Cache(folder)


@cache
def _latency_table(folder: str | None, threads: int, seed: int) -> LatencyTable:
    return LatencyTable(open_cache(folder), threads, seed)


def _check_patterns(found: Found, config: Config) -> None:
    names = [(site.layer.key, site.place.proto.name) for group in found.groups for site in group.sites]
    names += [(refusal.key, "") for refusal in found.refusals]
    for option, patterns in (
        ("--include", config.include),
        ("--exclude", config.exclude),
        ("a layer rule", [p for p, rule in config.layers.items() if not rule.says_how_to_cluster]),
    ):
        for pattern in patterns:
            if not any(matches(pattern, *name) for name in names):
                shown = ", ".join(key for key, _ in names[:5]) or "none"
                raise UsageError(f"{option} '{pattern}' matches no layer; layers are: {shown}, ...")


def _check_fixed_rank(targets: list[Target]) -> None:
    fixed = [(t, t.policy.rank) for t in targets if isinstance(t.policy, Fixed)]
    if not fixed:
        return
    bounds = [max(max(m.rank_bounds(t.group.layer)) for m in t.methods) for t, _ in fixed]
    if all(rank > bound for (_, rank), bound in zip(fixed, bounds, strict=True)):
        raise UsageError(
            f"--rank {fixed[0][1]} is above the largest rank of every layer: give {max(bounds)} or less."
        )
