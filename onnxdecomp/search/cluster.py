"""Weights as codebooks after decomposition: of the same width, or of widths chosen inside the budget."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from threadpoolctl import threadpool_limits

from onnxdecomp.config import Config
from onnxdecomp.graph.codebook import CodebookWriter
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.tensors import find_weights
from onnxdecomp.report.outcome import WeightOutcome
from onnxdecomp.runtime.activations import stream_moments
from onnxdecomp.search.codebooks import (
    Clusterable,
    clusterable,
    clustered_outcome,
    codebook_of,
    metric_of,
    numbers,
    stored_form,
)
from onnxdecomp.search.track import Track, untracked, watched
from onnxdecomp.search.trial import Trials
from onnxdecomp.search.widths import Widths, chosen_widths
from onnxdecomp.weights.moments import Moments


@dataclass
class Clustering:
    """A model with codebooks.

    Args:
        proto: The model; as it was when no weight became a codebook.
        outcomes: One per weight, in the order of their first use.
        notes: Sentences the user should read.
    """

    proto: onnx.ModelProto
    outcomes: list[WeightOutcome]
    notes: list[str] = field(default_factory=list)


def cluster_model(
    model: Model,
    original: Model,
    add_tensor: Callable[..., onnx.TensorProto],
    trials: Trials | None,
    config: Config,
    track: Track = untracked,
) -> Clustering:
    """Write the weights of a model as codebooks, one after the other.

    Args:
        model: The model, decomposed or not; not modified.
        original: The model that it was made from, whose bytes a target counts from.
        add_tensor: Stores an array under a name with a dtype and returns the tensor.
        trials: The samples, and the original on them; None clusters by the weights alone.
        config: `cluster` and what goes with it, budgets and patterns count.
        track: Shows how far each stage is.

    Raises:
        BudgetError: The target cannot be reached, and `force` is off.
    """
    writer = CodebookWriter(model, add_tensor)
    unseen = trials.unseen(model.proto.graph) if trials is not None and config.cluster == "auto" else set()
    weights, outcomes = clusterable(model, config, writer.refusal, unseen)
    notes: list[str] = []
    pairs = _with_moments(model, weights, trials, config)
    with threadpool_limits(1, "blas"), TemporaryDirectory() as scratch:
        if config.cluster != "auto":
            outcomes += _written(model, writer, pairs, len(weights), track)
        elif trials is not None:
            fixed_bytes = sum(int(outcome.size_bytes.before or 0) for outcome in outcomes)
            widths = Widths(model, list(pairs), config, Path(scratch))
            with watched(trials, track, "choosing bits"):
                chosen, said = chosen_widths(widths, trials, original, fixed_bytes, config)
            notes += said
            outcomes += widths.store(writer, chosen)
    order = {weight.scope + weight.name: place for place, weight in enumerate(find_weights(model))}
    return Clustering(writer.finish(), sorted(outcomes, key=lambda outcome: order[outcome.name]), notes)


def _with_moments(
    model: Model, weights: Sequence[Clusterable], trials: Trials | None, config: Config
) -> Iterator[tuple[Clusterable, Moments | None]]:
    """Yield each weight with the moments of its layer's input, as they come, and then the others."""
    left = {weight.name: weight for weight in weights}
    of_layer = {weight.group.layer.key: weight for weight in weights if weight.group is not None}
    can_run = model.path is not None or not model.data_files
    if trials is not None and can_run:
        groups = [weight.group for weight in weights if weight.group is not None]
        source = model.path or model.proto
        samples = trials.fit_samples
        streamed = stream_moments(source, groups, samples, jobs=trials.jobs, seed=config.seed, thin=False)
        for key, moments in streamed:
            yield left.pop(of_layer[key].name), moments
    for weight in left.values():
        yield weight, None


def _written(
    model: Model,
    writer: CodebookWriter,
    pairs: Iterator[tuple[Clusterable, Moments | None]],
    n_weights: int,
    track: Track,
) -> list[WeightOutcome]:
    """Store each weight as a codebook of the width that was asked for; memory holds one."""
    outcomes = []
    steps = iter(track(range(n_weights), "clustering"))
    for weight, moments in pairs:
        next(steps, None)
        array = numbers(model, weight)
        if isinstance(array, str):
            outcomes.append(weight.outcome(array))
            continue
        metric = metric_of(model, weight, moments)
        assert weight.rule.bits is not None
        codebook = codebook_of(array, weight, weight.rule.bits, metric)
        writer.store(weight.stored.name, stored_form(codebook), weight.stored.scope)
        outcomes.append(clustered_outcome(weight, array, codebook, metric))
    next(steps, None)
    return outcomes
