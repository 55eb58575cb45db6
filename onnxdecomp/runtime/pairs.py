"""What layers of the original put out beside what their last steps meet in a rewritten model.

Both models run on the same samples; the same places are read from both.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.runtime.activations import (
    ACTIVATION_SHARE,
    MAX_BYTES,
    n_samples_in,
    n_wanted_of,
    run_batches,
    samplers_of,
    sized_feeds,
    values_per_patch,
)
from onnxdecomp.runtime.outputs import open_outputs
from onnxdecomp.runtime.patches import PatchSums, Reader
from onnxdecomp.runtime.session import Array, Feeds, Model, read_proto, run
from onnxdecomp.weights.moments import PairMoments


class KnownOutputs:
    """Outputs of layers of the original at the places drawn, kept while the rewritten model changes.

    Args:
        max_bytes: Most memory that they may take.
    """

    def __init__(self, max_bytes: int = MAX_BYTES // 4) -> None:
        self._left_bytes = max_bytes
        self._rows: dict[Hashable, list[FloatArray]] = {}

    def get(self, key: Hashable) -> list[FloatArray] | None:
        """Return the rows of a key, in the order they were made, or None."""
        return self._rows.get(key)

    def put(self, key: Hashable, rows: list[FloatArray]) -> None:
        """Keep rows if they fit."""
        size_bytes = sum(array.nbytes for array in rows)
        if key not in self._rows and size_bytes <= self._left_bytes:
            self._rows[key] = rows
            self._left_bytes -= size_bytes


def pair_moments(
    original: Model,
    rewritten: Model,
    tensors: Sequence[tuple[str, str]],
    layer: Layer,
    step: StepSpec,
    samples: Mapping[str, Array],
    *,
    jobs: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    known: KnownOutputs | None = None,
) -> PairMoments | None:
    """Run two models on the same samples and return the joint moments of a layer and its last step.

    As many places are drawn as `gather_moments` draws, those of both models the same. Of each model only
    what the tensors need is run.

    Args:
        original: The model with the layer, or its path.
        rewritten: The model with a chain of several steps in its place, or its path. External data of a
            model in memory is looked for beside `original`.
        tensors: For each node that shares the weight: name of the layer's output in `original`, name of the
            last step's data input in `rewritten`.
        layer: The layer.
        step: The last step of the chain.
        samples: As `load_samples` returns them.
        jobs: Batches run side by side.
        seed: Seed of the places drawn.
        max_bytes: The sums may take half of it.
        known: Keeps outputs of the original for the next call with the same samples and seed.

    Returns:
        The moments; None when the sums would take more memory or a value is not finite.

    Raises:
        UsageError: There are too few samples.
        ModelError: onnxruntime cannot load a model or run it on the samples.
    """
    n_outputs, group, size = step.weight_shape[0], step.geometry.group, values_per_patch(step)
    if 8 * size * (group * size + n_outputs) > max_bytes // 2:
        return None
    sums = PatchSums(group, size, n_outputs)
    models = original, rewritten
    for patches, outputs in _pairs(*models, tensors, layer, step, samples, jobs, seed, max_bytes, known):
        sums.add(patches, outputs)
    return sums.pair_moments()


def pair_rows(
    original: Model,
    rewritten: Model,
    tensors: Sequence[tuple[str, str]],
    layer: Layer,
    step: StepSpec,
    samples: Mapping[str, Array],
    *,
    jobs: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    known: KnownOutputs | None = None,
) -> tuple[FloatArray, FloatArray] | None:
    """Return the patches ``(n, G, D)`` and outputs ``(n, O)`` themselves that `pair_moments` sums up.

    Args, Raises: As `pair_moments`.

    Returns:
        None when they could take more than half of `max_bytes`, or when a value is not finite.
    """
    n_outputs, group, size = step.weight_shape[0], step.geometry.group, values_per_patch(step)
    if 4 * (n_wanted_of(size) + len(tensors)) * (group * size + n_outputs) > max_bytes // 2:
        return None
    models = original, rewritten
    pairs = list(_pairs(*models, tensors, layer, step, samples, jobs, seed, max_bytes, known))
    patches, outputs = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return (patches, outputs) if np.isfinite(patches).all() and np.isfinite(outputs).all() else None


def _pairs(
    original: Model,
    rewritten: Model,
    tensors: Sequence[tuple[str, str]],
    layer: Layer,
    step: StepSpec,
    samples: Mapping[str, Array],
    jobs: int,
    seed: int,
    max_bytes: int,
    known: KnownOutputs | None,
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield patches ``(n, G, D)`` of the last step with the outputs ``(n, O)`` of the layer."""
    folder = original.parent if isinstance(original, Path) else None
    before = open_outputs(original, [y for y, _ in tensors])
    after = open_outputs(rewritten, [z for _, z in tensors], folder=folder)
    feeds = sized_feeds([before, after], samples, read_proto(original), max_bytes // ACTIVATION_SHARE)
    sizes = [n_samples_in(feed) for feed in feeds]
    samplers = samplers_of(layer, len(tensors), values_per_patch(step), seed, sum(sizes))
    reader = Reader(step, columns=layer.weight_on_left)
    key = (layer.key, n_wanted_of(values_per_patch(step)), seed, tuple(sizes))
    seen = known.get(key) if known else None
    made: list[FloatArray] = []

    def run_both(feed: Feeds) -> tuple[Feeds, Feeds]:
        return run(before, feed) if seen is None else {}, run(after, feed)

    for feed, (outputs, inputs) in run_batches(run_both, feeds, jobs):
        for (y, z), sampler in zip(tensors, samplers, strict=True):
            for places in sampler.draw(reader.shape(inputs[z]), n_samples_in(feed)):
                made.append(reader.outputs(outputs[y], places) if seen is None else seen[len(made)])
                yield reader.patches(inputs[z], places), made[-1]
    if known is not None:
        known.put(key, made)
