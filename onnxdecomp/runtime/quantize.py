"""Static INT8 by `onnxruntime.quantization`, in the QDQ format: quantized where it works, float elsewhere.

Activations are unsigned with one scale a tensor, weights signed with one scale an output channel. Conv, Gemm
and MatMul with a constant weight are quantized, and operators between them that onnxruntime runs in INT8 when
everything they take is INT8 already. The numbers are onnxruntime's; what is decided here is which nodes, over
which ranges, and whether the result is any good.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import onnx

from onnxdecomp.errors import ModelError, unknown_name
from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.quantize_build import WORST_ERROR, Int8Builder
from onnxdecomp.runtime.quantize_prepare import ONNX_ERRORS, prepare, quiet
from onnxdecomp.runtime.samples import batches
from onnxdecomp.runtime.session import Array, Feeds, Model, first_sentence, read_proto

BATCH = 8
"""Samples run at once where the model allows it."""

N_CALIBRATION = 64
"""Samples the ranges are found on: more of them move the extremes, not the bulk."""

N_COMPARED = 16
"""Samples on which quantized models are compared with the float one."""

EXCLUDED = "it was asked to stay in float"

Loss = Callable[[onnx.ModelProto], float]


@dataclass(frozen=True)
class Quantized:
    """A quantized model, or why there is none. Nodes are known by `graph.walk` keys of the float model.

    Args:
        model: The model; None when nothing could or should be quantized.
        quantized: The Conv, Gemm and MatMul that run in INT8.
        kept: The others of them, and the ConvTranspose, each with the reason why it stays in float.
        reason: Why there is no model; empty when there is one.
    """

    model: onnx.ModelProto | None
    quantized: tuple[str, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    reason: str = ""


def quantize(
    model: Model,
    samples: Mapping[str, Array],
    *,
    exclude: Collection[str] = (),
    threads: int = 1,
    seed: int = 0,
) -> Quantized:
    """Quantize everything that can be; of several kinds of ranges those that change the outputs least.

    Args:
        model: The float model or its path; not modified.
        samples: Unlabelled samples as `load_samples` returns them.
        exclude: Keys of nodes to leave in float.
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


def search_int8(
    model: Model,
    samples: Mapping[str, Array],
    loss: Loss,
    budget: float,
    *,
    faster: Callable[[onnx.ModelProto], bool] | None = None,
    exclude: Collection[str] = (),
    threads: int = 1,
    seed: int = 0,
) -> Quantized:
    """Quantize as many nodes as the loss allows: those that hurt most stay in float.

    When everything in INT8 loses too much, every node is quantized alone and compared with the float model on
    `N_COMPARED` of the samples; then the number of nodes left in float, the most sensitive first, is found by
    bisection. `loss` is called at most ``1 + ceil(log2(nodes))`` times, `faster` at most once, at the end.

    Args:
        model: The float model or its path; not modified.
        samples: Unlabelled samples as `load_samples` returns them.
        loss: What a model loses, measured on data that are not in `samples`.
        budget: What it may lose at most.
        faster: Whether a model is faster than the float one; None to accept any.
        exclude: Keys of nodes to leave in float.
        threads: Threads inside an operator.
        seed: Seed of the choice of `N_CALIBRATION` samples.

    Returns:
        As `quantize`; None also when no node fits into the budget, or the result is not faster.

    Raises:
        ModelError: The model cannot be read.
        UsageError: There are fewer samples than the model's fixed batch, or no such node to exclude.
    """
    with quiet():
        work = _begin(model, samples, exclude, threads, seed)
        found = work if isinstance(work, Quantized) else work.checked(work.layers)
    if isinstance(work, Quantized) or found.model is None:
        return found
    least = _loss_of(found, loss)
    if not least <= budget:
        found, least = _bisect(work, loss, budget, least)
    if found.model is not None and faster is not None and not faster(found.model):
        total = len(found.quantized) + len(found.kept)
        reason = f"INT8 loses {least:.3g} with {len(found.quantized)} of {total} nodes but is not faster."
        return Quantized(
            None, (), tuple((key, "INT8 is not faster") for key in found.quantized) + found.kept, reason
        )
    return found


def _bisect(work: "_Work", loss: Loss, budget: float, lost: float) -> tuple[Quantized, float]:
    """Return the model with the fewest nodes in float that keeps the budget, and its loss."""
    with quiet():
        order = work.most_sensitive_first()
    found, least = None, lost
    fails, holds = 0, len(order)
    while holds - fails > 1:
        n_kept = (fails + holds) // 2
        with quiet():
            tried = work.checked(order[n_kept:])
        loss_here = _loss_of(tried, loss)
        least = min(least, loss_here)
        if loss_here <= budget:
            found, lost, holds = tried, loss_here, n_kept
        else:
            fails = n_kept
    reason = f"in INT8 the model loses more than {budget:.3g}"
    if found is None:
        return work.nothing(f"INT8 loses at least {least:.3g} and the budget is {budget:.3g}.", reason), least
    extra = tuple((work.layers[name], reason) for name in order[:holds])
    return replace(found, kept=extra + found.kept), lost


def _loss_of(found: Quantized, loss: Loss) -> float:
    return inf if found.model is None else loss(found.model)


def _begin(
    model: Model, samples: Mapping[str, Array], exclude: Collection[str], threads: int, seed: int
) -> "_Work | Quantized":
    """Prepare a model and find its ranges, or say why nothing of it can be quantized."""
    proto = read_proto(model)
    known = [place.key for place in walk(proto.graph)]
    for key in exclude:
        if key not in known:
            raise unknown_name("node", key, known)
    feeds = list(batches(samples, proto, BATCH))
    order = np.random.default_rng(seed).permutation(len(feeds))
    calibration = _first_samples([feeds[number] for number in order], N_CALIBRATION)
    compared = _first_samples(calibration, N_COMPARED)
    prepared = prepare(model, compared[0], threads)
    if isinstance(prepared, str):
        return Quantized(None, reason=prepared)
    try:
        builder = Int8Builder(prepared, calibration, compared, threads)
    except ONNX_ERRORS as error:
        return Quantized(None, kept=tuple(prepared.kept.items()), reason=first_sentence(error))
    return _Work.start(builder, exclude)


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
    """A builder, the nodes to quantize by name with their keys, and the percentage of the best ranges."""

    builder: Int8Builder
    layers: Mapping[str, str]
    kept: Mapping[str, str]
    percentage: float

    @classmethod
    def start(cls, builder: Int8Builder, exclude: Collection[str]) -> "_Work | Quantized":
        """Choose the ranges over which the whole model comes closest to the float one."""
        layers = {name: key for name, key in builder.layers.items() if key not in exclude}
        asked = {key: EXCLUDED for name, key in builder.layers.items() if name not in layers}
        kept = {**builder.kept, **asked}
        if not layers:
            return Quantized(None, kept=tuple(kept.items()), reason="No node of the model can be quantized.")
        works = [cls(builder, layers, kept, percentage) for percentage in builder.ranges]
        return min(works, key=lambda work: work.error(layers))

    def error(self, names: Collection[str]) -> float:
        """Return how far the model with these nodes in INT8 is from the float one."""
        try:
            return self.builder.error(self.builder.build(names, self.percentage)[0])
        except ModelError:
            return WORST_ERROR

    def most_sensitive_first(self) -> list[str]:
        """Return the nodes by what quantizing each alone does to the outputs."""
        return sorted(self.layers, key=lambda name: self.error([name]), reverse=True)

    def checked(self, names: Collection[str]) -> Quantized:
        """Return the model with these nodes in INT8, or what is wrong with it."""
        try:
            proto, done = self.builder.build(names, self.percentage)
        except ModelError as error:
            return self.nothing(str(error), "the model cannot be quantized")
        problem = self.builder.problem(proto)
        if problem:
            return self.nothing(
                f"The quantized model does not work: {problem}", "the quantized model does not work"
            )
        keys = tuple(self.layers[name] for name in self.layers if name in done)
        left = {self.layers[name]: "onnxruntime left it in float" for name in names if name not in done}
        return Quantized(proto, keys, tuple((left | dict(self.kept)).items()))

    def nothing(self, reason: str, node_reason: str) -> Quantized:
        """Return that there is no model, with a reason for every node."""
        kept = {**dict.fromkeys(self.layers.values(), node_reason), **self.kept}
        return Quantized(None, kept=tuple(kept.items()), reason=reason)
