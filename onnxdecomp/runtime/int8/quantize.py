"""Static INT8 by `onnxruntime.quantization`, in the QDQ format: quantized where it works, float elsewhere.

Activations have one scale a tensor and are unsigned, or signed where that is faster; weights are signed with
one scale an output channel. Conv, Gemm and MatMul with a constant weight are quantized, and operators between
them that onnxruntime runs in INT8 when everything they take is INT8 already. The numbers are onnxruntime's;
what is decided here is which nodes, over which ranges, and whether the result is any good.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType

import numpy as np
import onnx

from onnxdecomp.errors import ModelError, unknown_name
from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.int8.build import WORST_ERROR, Built, Int8Builder
from onnxdecomp.runtime.int8.channels import lacks_channels
from onnxdecomp.runtime.int8.prepare import ONNX_ERRORS, prepare, quiet
from onnxdecomp.runtime.int8.ranges import ALL
from onnxdecomp.runtime.machine import int8_saturates
from onnxdecomp.runtime.samples import batches
from onnxdecomp.runtime.session import Array, Feeds, Model, first_sentence, read_proto

BATCH = 8
"""Samples run at once where the model allows it."""

N_CALIBRATION = 64
"""Samples the ranges are found on: more of them move the extremes, not the bulk."""

N_COMPARED = 16
"""Samples on which quantized models are compared with the float one."""

MAX_TRIMMED = 4
"""Nodes that are tried in float for the sake of speed."""

Loss = Callable[[onnx.ModelProto], float]

Faster = Callable[[onnx.ModelProto, Model], bool]
"""Whether the first model is measured to be faster than the second."""


@dataclass(frozen=True)
class Quantized:
    """A quantized model, or why there is none. Nodes are known by `graph.walk` keys of the float model.

    Args:
        model: The model; None when nothing could or should be quantized.
        quantized: The Conv, Gemm and MatMul that run in INT8.
        kept: The others of them, and the ConvTranspose, each with the reason why it stays in float.
        reason: Why there is no model; empty when there is one.
        padded: The convolutions whose input got channels of zero weight.
        spared: Whether nodes, or all of them, stay in float because in INT8 they would lose too much.
    """

    model: onnx.ModelProto | None
    quantized: tuple[str, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    padded: tuple[str, ...] = ()
    spared: bool = False


def quantize(
    model: Model,
    samples: Mapping[str, Array],
    *,
    exclude: Mapping[str, str] = MappingProxyType({}),
    threads: int = 1,
    seed: int = 0,
) -> Quantized:
    """Quantize everything that can be; of several kinds of ranges those that change the outputs least.

    Args:
        model: The float model or its path; not modified.
        samples: Unlabelled samples as `load_samples` returns them.
        exclude: Why nodes are to be left in float, by their keys.
        threads: Threads inside an operator.
        seed: Seed of the choice of `N_CALIBRATION` samples.

    Returns:
        A model that the ONNX checker accepts, whose inputs and outputs are those of the float model, and that
        runs in onnxruntime with optimizations off and on; or None with the reason.

    Raises:
        ModelError: The model cannot be read.
        UsageError: There are fewer samples than the model's fixed batch, or no such node to exclude.
    """
    with quiet():
        work = _begin(model, samples, exclude, threads, seed)
        if isinstance(work, Quantized):
            return work
        return work.checked(work.layers)


def as_fast_as_int8(model: Model, feeds: Feeds, threads: int = 1) -> Built:
    """Return a model with all in INT8 that can be, over ranges of one input: what its clock says will hold.

    Args:
        model: The float model or its path; not modified.
        feeds: A complete set of inputs.
        threads: Threads inside an operator.

    Raises:
        ModelError: Nothing of it can be in INT8.
    """
    with quiet():
        prepared = prepare(model, feeds, threads)
        if isinstance(prepared, str):
            raise ModelError(prepared)
        try:
            builder = Int8Builder(prepared, [feeds], [feeds], threads)
            return builder.build(builder.layers, ALL)
        except ONNX_ERRORS as error:
            raise ModelError(f"The model cannot be quantized: {first_sentence(error)}") from error


def search_int8(
    model: Model,
    samples: Mapping[str, Array],
    loss: Loss,
    budget: float,
    *,
    faster: Faster | None = None,
    against: Model | None = None,
    exclude: Mapping[str, str] = MappingProxyType({}),
    threads: int = 1,
    jobs: int = 1,
    seed: int = 0,
) -> Quantized:
    """Quantize as many nodes as the loss allows: those that hurt most stay in float.

    When everything in INT8 loses too much, every node is quantized alone and compared with the float model on
    `N_COMPARED` of the samples; then the number of nodes left in float, the most sensitive first, is found by
    bisection. Then, where there is a clock, inputs are padded to whole blocks of channels, activations become
    signed, and nodes go back to float one by one, those with the fewest products an output first, as long as
    the model gets faster and keeps the budget.

    Args:
        model: The float model or its path; not modified.
        samples: Unlabelled samples as `load_samples` returns them.
        loss: What a model loses, measured on data that are not in `samples`.
        budget: What it may lose at most.
        faster: The clock; None to accept any model.
        against: What the result has to be faster than; None is the float model.
        exclude: Why nodes are to be left in float, by their keys.
        threads: Threads inside an operator.
        jobs: Batches of samples that models are compared on side by side.
        seed: Seed of the choice of `N_CALIBRATION` samples.

    Returns:
        As `quantize`; None also when no node fits into the budget, or the result is not faster.

    Raises:
        ModelError: The model cannot be read.
        UsageError: There are fewer samples than the model's fixed batch, or no such node to exclude.
    """
    with quiet():
        work = _begin(model, samples, exclude, threads, seed, jobs)
        found = work if isinstance(work, Quantized) else work.checked(work.layers)
    if isinstance(work, Quantized):
        return work
    lost = inf if found.model is None else loss(found.model)
    if not lost <= budget:
        found = _bisect(work, loss, budget, lost, found.reason)
    if found.model is None or faster is None:
        return found
    found = _sped_up(work, found, lambda quick, slow: faster(quick, slow) and loss(quick) <= budget)
    if found.model is not None and faster(found.model, model if against is None else against):
        return found
    n_nodes = len(found.quantized) + len(found.kept)
    slow = tuple((key, "INT8 is not faster") for key in found.quantized)
    reason = f"With {len(found.quantized)} of {n_nodes} nodes in INT8 the model is not faster."
    return Quantized(None, kept=slow + found.kept, reason=reason)


def _bisect(work: "_Work", loss: Loss, budget: float, least: float, problem: str) -> Quantized:
    """Return the model with the fewest nodes in float that keeps the budget.

    `least` and `problem` are what all of them in INT8 lose, and why they do not work, if so.
    """
    with quiet():
        order = work.most_sensitive_first()
    found = None
    fails, holds = 0, len(order)
    while holds - fails > 1:
        n_kept = (fails + holds) // 2
        with quiet():
            tried = work.checked(order[n_kept:])
        lost = inf if tried.model is None else loss(tried.model)
        least = min(least, lost)
        if lost <= budget:
            found, holds = tried, n_kept
        else:
            fails = n_kept
    reason = f"in INT8 the loss goes beyond {budget:.3g}"
    if found is None:
        missed = f"INT8 loses at least {least:.3g} and the budget is {budget:.3g}."
        nothing = work.nothing(missed if least < inf else problem or missed, reason)
        return replace(nothing, spared=least < inf)
    in_float = tuple((work.layers[name], reason) for name in order[:holds])
    return replace(found, kept=in_float + found.kept, spared=True)


def _sped_up(work: "_Work", found: Quantized, better: Faster) -> Quantized:
    """Return the model with padded inputs, signed activations and nodes in float as far as that is better."""

    def improved(tried: Quantized) -> bool:
        return tried.model is not None and found.model is not None and better(tried.model, found.model)

    names = {key: name for name, key in work.layers.items()}
    chosen = [names[key] for key in found.quantized]
    if found.model is not None and lacks_channels(found.model):
        wider = replace(work, padded=True)
        with quiet():
            tried = wider.checked(chosen)
        if improved(tried):
            work, found = wider, replace(found, model=tried.model, padded=tried.padded)
    if not int8_saturates():
        signed = replace(work, signed=True)
        with quiet():
            tried = signed.checked(chosen)
        if improved(tried):
            work, found = signed, replace(found, model=tried.model)
    for name in sorted(chosen, key=work.builder.n_products)[:MAX_TRIMMED]:
        rest = [other for other in chosen if other != name]
        with quiet():
            tried = work.checked(rest)
        if not rest or not improved(tried):
            break
        kept = ((work.layers[name], "float is faster"), *found.kept)
        chosen, found = rest, replace(tried, kept=kept, spared=found.spared)
    return found


def _begin(
    model: Model,
    samples: Mapping[str, Array],
    exclude: Mapping[str, str],
    threads: int,
    seed: int,
    jobs: int = 1,
) -> "_Work | Quantized":
    """Prepare a model and find its ranges, or say why nothing of it can be quantized."""
    proto = read_proto(model)
    known = [place.key for place in walk(proto.graph)]
    for key in exclude:
        if key not in known:
            raise unknown_name("node", key, known)
    feeds = [{name: np.asarray(x) for name, x in f.items()} for f in batches(samples, proto, BATCH)]
    order = np.random.default_rng(seed).permutation(len(feeds))
    calibration = _first_samples([feeds[number] for number in order], N_CALIBRATION)
    compared = _first_samples(calibration, N_COMPARED)
    prepared = prepare(model, compared[0], threads)
    if isinstance(prepared, str):
        return Quantized(None, reason=prepared)
    try:
        return _Work.start(Int8Builder(prepared, calibration, compared, threads, jobs), exclude)
    except ONNX_ERRORS as error:
        return Quantized(None, kept=tuple(prepared.kept.items()), reason=first_sentence(error))


def _first_samples(feeds: Sequence[Feeds], n_samples: int) -> list[Feeds]:
    """Return the first feeds, as many as hold `n_samples` or all."""
    taken, count = [], 0
    for feed in feeds:
        if count >= n_samples:
            break
        taken.append(feed)
        count += max((len(array) for array in feed.values() if np.ndim(array)), default=1)
    return taken


@dataclass(frozen=True)
class _Work:
    """Nodes to quantize, and the model with all of them in INT8.

    Args:
        builder: What builds the models.
        layers: Keys of the nodes by their names.
        kept: Reasons of the others by key.
        percentage: That of the best ranges.
        whole: The model over these ranges.
        signed: Whether activations are signed; in `whole` they are not.
        padded: Whether inputs are padded to whole blocks of channels.
    """

    builder: Int8Builder
    layers: Mapping[str, str]
    kept: Mapping[str, str]
    percentage: float
    whole: Built
    signed: bool = False
    padded: bool = False

    @classmethod
    def start(cls, builder: Int8Builder, exclude: Mapping[str, str]) -> "_Work | Quantized":
        """Choose the ranges over which the whole model comes closest to the float one.

        Raises:
            ModelError: The quantizer fails.
        """
        layers = {name: key for name, key in builder.layers.items() if key not in exclude}
        asked = {key: exclude[key] for key in builder.layers.values() if key in exclude}
        kept = {**builder.kept, **asked}
        if not layers:
            return Quantized(None, kept=tuple(kept.items()), reason="No node of the model can be quantized.")
        best, least = None, inf
        for percentage in builder.ranges:
            built = builder.build(layers, percentage)
            error = builder.error(built.model)
            if error < least:
                best, least = cls(builder, layers, kept, percentage, built), error
        assert best is not None, "an error is never infinite"
        return best

    def most_sensitive_first(self) -> list[str]:
        """Return the nodes by what quantizing each alone does to the outputs."""
        return sorted(self.layers, key=self._error_alone, reverse=True)

    def checked(self, names: Collection[str]) -> Quantized:
        """Return the model with these nodes in INT8, or what is wrong with it."""
        known = len(names) == len(self.layers) and not (self.signed or self.padded)
        try:
            built = self.whole if known else self._built(names)
        except ModelError as error:
            return self.nothing(str(error), "the model cannot be quantized")
        problem = self.builder.problem(built.model)
        if problem:
            reason = "the quantized model does not work"
            return self.nothing(f"The quantized model does not work: {problem}", reason)
        keys = tuple(key for name, key in self.layers.items() if name in built.done)
        left = {self.layers[name]: "onnxruntime left it in float" for name in names if name not in built.done}
        padded = tuple(key for name, key in self.layers.items() if name in built.padded)
        return Quantized(built.model, keys, tuple({**left, **self.kept}.items()), padded=padded)

    def _built(self, names: Collection[str]) -> Built:
        return self.builder.build(names, self.percentage, signed=self.signed, padded=self.padded)

    def nothing(self, reason: str, node_reason: str) -> Quantized:
        """Return that there is no model, with a reason for every node."""
        kept = {**dict.fromkeys(self.layers.values(), node_reason), **self.kept}
        return Quantized(None, kept=tuple(kept.items()), reason=reason)

    def _error_alone(self, name: str) -> float:
        try:
            return self.builder.error(self.builder.build([name], self.percentage).model)
        except ModelError:
            return WORST_ERROR
