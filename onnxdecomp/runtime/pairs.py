"""What layers of the original put out beside what their last steps meet in a rewritten model.

Both models run on the same samples; the same places are read from both. Layers are asked for from front to
back, so that no part of a model is run for each of them anew.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.runtime.activations import (
    ACTIVATION_SHARE,
    MAX_AHEAD,
    MAX_BYTES,
    n_wanted_of,
    samplers_of,
    sized_feeds,
    values_per_patch,
)
from onnxdecomp.runtime.outputs import open_outputs
from onnxdecomp.runtime.passage import Passage
from onnxdecomp.runtime.patches import PatchSums, Places, Reader
from onnxdecomp.runtime.session import Array, Feeds, Model, read_proto
from onnxdecomp.weights.moments import PairMoments

Drawn = list[tuple[Places, FloatArray]]
"""Places of a batch, and what a layer of the original puts out there ``(n, O)``."""


class KnownOutputs:
    """Outputs of layers of the original at the places drawn, kept while the rewritten model changes.

    Args:
        max_bytes: Most memory that they may take, with the places.
    """

    def __init__(self, max_bytes: int = MAX_BYTES // 2) -> None:
        self._left_bytes = max_bytes
        self._drawn: dict[Hashable, list[Drawn]] = {}

    def get(self, key: Hashable) -> list[Drawn] | None:
        """Return what is known of a key, in the order it was made, or None."""
        return self._drawn.get(key)

    def put(self, key: Hashable, drawn: list[Drawn]) -> None:
        """Keep what was drawn if it fits."""
        arrays = [array for one in drawn for places, rows in one for array in (*places, rows)]
        size_bytes = sum(array.nbytes for array in arrays)
        if key not in self._drawn and size_bytes <= self._left_bytes:
            self._drawn[key] = drawn
            self._left_bytes -= size_bytes


@dataclass(frozen=True)
class LastStepAt:
    """A layer of the original, and the last step of the chain in its place.

    Args:
        layer: The layer.
        step: The last step of the chain.
        tensors: For each node that shares the weight: name of the layer's output, which is that of the last
            step too, and name of the last step's data input in the rewritten model.
    """

    layer: Layer
    step: StepSpec
    tensors: Sequence[tuple[str, str]]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of outputs O, groups G, and values D of a patch of one group."""
        return self.step.weight_shape[0], self.step.geometry.group, values_per_patch(self.step)


class Pairs:
    """Runs the original and what it becomes on the same samples, from front to back.

    As many places are drawn as `gather_moments` draws, or fewer. Of each model only what the tensors need is
    run, and that once when layers are asked for in the order of the model and chains change only behind the
    ones asked for before.

    Args:
        original: The model with the layers, or its path.
        outputs: Outputs of those layers. A batch is as large as lets all of them fit.
        samples: As `load_samples` returns them.
        jobs: Batches run side by side.
        seed: Seed of the places drawn.
        max_bytes: The sums or rows of one layer may take half of it.
        known: Keeps outputs of the original for the next pairs with the same samples and seed.
        max_places: Places drawn of one layer at most; None for no such limit.

    Raises:
        UsageError: There are too few samples.
        ModelError: onnxruntime cannot load the original.
    """

    def __init__(
        self,
        original: Model,
        outputs: Sequence[str],
        samples: Mapping[str, Array],
        *,
        jobs: int = 1,
        seed: int = 0,
        max_bytes: int = MAX_BYTES,
        known: KnownOutputs | None = None,
        max_places: int | None = None,
    ) -> None:
        self._original, self._proto = original, read_proto(original)
        self._seed, self._max_bytes, self._known = seed, max_bytes, known or KnownOutputs(0)
        self._max_places = max_places
        sized = open_outputs(original, outputs)
        feeds, self._sizes = sized_feeds([sized], samples, self._proto, max_bytes // ACTIVATION_SHARE)
        n_jobs = min(jobs, MAX_AHEAD)
        self._before, self._after = Passage(feeds, jobs=n_jobs), Passage(feeds, jobs=n_jobs)

    def moments(self, rewritten: Model, at: LastStepAt) -> PairMoments | None:
        """Return the joint moments of a layer's output and the patches of a last step.

        Args:
            rewritten: The model with a chain of several steps in the layer's place, or its path. External
                data of a model in memory is looked for beside the original.
            at: The layer and the last step.

        Returns:
            None when the sums would take too much memory or a value is not finite.

        Raises:
            ModelError: onnxruntime cannot load a model or run it on the samples.
        """
        n_outputs, group, size = at.sizes
        if 8 * size * (group * size + n_outputs) > self._max_bytes // 2:
            return None
        sums = PatchSums(group, size, n_outputs)
        for patches, outputs in self._read(rewritten, at):
            sums.add(patches, outputs)
        return sums.pair_moments()

    def rows(self, rewritten: Model, at: LastStepAt) -> tuple[FloatArray, FloatArray] | None:
        """Return the patches ``(n, G, D)`` and outputs ``(n, O)`` themselves that `moments` sums up.

        Args, Raises: As `moments`.

        Returns:
            None when they could take too much memory, or when a value is not finite.
        """
        n_outputs, group, size = at.sizes
        if 4 * (self._n_wanted(size) + len(at.tensors)) * (group * size + n_outputs) > self._max_bytes // 2:
            return None
        pairs = list(self._read(rewritten, at))
        patches, outputs = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return (patches, outputs) if np.isfinite(patches).all() and np.isfinite(outputs).all() else None

    def _n_wanted(self, size: int) -> int:
        """Return how many places are drawn of a layer whose last step has patches of this size."""
        n_wanted = n_wanted_of(size)
        return n_wanted if self._max_places is None else min(n_wanted, self._max_places)

    def _read(self, rewritten: Model, at: LastStepAt) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield patches ``(n, G, D)`` of the last step with the outputs ``(n, O)`` of the layer."""
        size = at.sizes[-1]
        n_wanted = self._n_wanted(size)
        key = (at.layer.key, n_wanted, self._seed, tuple(self._sizes))
        seen = self._known.get(key)
        samplers = samplers_of(at.layer, len(at.tensors), n_wanted, self._seed, sum(self._sizes))
        reader, made = Reader(at.step, columns=at.layer.weight_on_left), list[Drawn]()
        batches = zip(self._outputs(at, run=seen is None), self._inputs(rewritten, at), strict=True)
        with threadpool_limits(1, "blas"):
            for n_samples, (outputs, inputs) in zip(self._sizes, batches, strict=True):
                for (y, z), sampler in zip(at.tensors, samplers, strict=True):
                    if seen is None:
                        drawn = sampler.draw(reader.shape(inputs[z]), n_samples)
                        made.append([(places, reader.outputs(outputs[y], places)) for places in drawn])
                    else:
                        made.append(seen[len(made)])
                    for places, rows in made[-1]:
                        yield reader.patches(inputs[z], places), rows
        self._known.put(key, made)

    def _outputs(self, at: LastStepAt, *, run: bool) -> Iterator[Feeds]:
        """Yield what the layer puts out in the original, or nothing for each batch if that is known."""
        if not run:
            yield from ({} for _ in self._sizes)
            return
        names = [y for y, _ in at.tensors]
        place = max(_index_of(self._proto, name) for name in names) + 1
        yield from self._before.run(self._proto, names, place, _folder(self._original))

    def _inputs(self, rewritten: Model, at: LastStepAt) -> Iterator[Feeds]:
        """Yield what the last step is given in the rewritten model."""
        proto, folder = read_proto(rewritten), _folder(rewritten) or _folder(self._original)
        place = min(_index_of(proto, y) for y, _ in at.tensors)
        yield from self._after.run(proto, [z for _, z in at.tensors], place, folder)


def _folder(model: Model) -> Path | None:
    return model.parent if isinstance(model, Path) else None


def _index_of(proto: onnx.ModelProto, name: str) -> int:
    """Return which node of the main graph makes a tensor."""
    return next(index for index, node in enumerate(proto.graph.node) if name in node.output)
