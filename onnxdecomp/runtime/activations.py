"""Moments of what the layers of a model meet on samples, streamed through onnxruntime.

The tensors that layers read become outputs of a copy of the model, and each batch is summed up before the
next one runs: no activation outlives its batch.

Memory: the sums of a layer take ``8 G D^2`` bytes, D being the values of one patch, and a product that is
half as large comes on top while it is added. The sums of the layers of one pass stay below a limit; beside
them stand the activations of one batch and at most a few thousand patches of each layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxdecomp.graph.find import LayerGroup, Site
from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.runtime.patches import CHUNK_ROWS, Numbers, PatchSums, PlaceSampler, Reader
from onnxdecomp.runtime.samples import batches
from onnxdecomp.runtime.session import Array, Feeds, Model, open_session, read_proto, run
from onnxdecomp.weights.moments import Moments, PairMoments

BATCH = 16
"""Samples run at once where the model allows it: the tensors of many layers are alive together."""

MIN_ROWS, MAX_ROWS, ROWS_PER_VALUE = 4096, 24_000, 8
"""Patches looked at: this many per value of a patch, within these bounds."""

MAX_BYTES = 1 << 30
"""Limit of the sums that grow during one pass over the samples."""


def gather_moments(
    model: Model,
    groups: Sequence[LayerGroup],
    samples: Mapping[str, Array],
    *,
    threads: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    batch: int = BATCH,
) -> dict[str, Moments]:
    """Return the moments of the patches that layers meet on samples, by key of the layer.

    Up to ``clip(8 D, 4096, 24000)`` patches of a layer are looked at, drawn evenly over samples and
    positions; a weight that several nodes share sees those of all of them. What is drawn depends on the seed,
    the layer and the batches, not on the other layers.

    All results together take ``8 G D^2`` bytes a layer; `stream_moments` hands them out pass by pass.

    Args:
        model: The model or its path; not modified.
        groups: Layers of that model.
        samples: As `load_samples` returns them.
        threads: Threads inside an operator.
        seed: Seed of the positions drawn.
        max_bytes: Limit of the sums of one pass; the samples are run as often as that takes.
        batch: Samples run at once where the model allows it.

    Returns:
        A `Moments` per layer, but for layers in bodies of other nodes, layers whose sums alone would take
        more than half of `max_bytes`, and layers that met values which are not finite.

    Raises:
        UsageError: There are too few samples.
        ModelError: onnxruntime cannot load the model or run it on the samples.
    """
    return dict(
        stream_moments(model, groups, samples, threads=threads, seed=seed, max_bytes=max_bytes, batch=batch)
    )


def stream_moments(
    model: Model,
    groups: Sequence[LayerGroup],
    samples: Mapping[str, Array],
    *,
    threads: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    batch: int = BATCH,
) -> Iterator[tuple[str, Moments]]:
    """Yield what `gather_moments` returns, layer by layer; the sums of one pass are kept until the next.

    Args, Raises: As `gather_moments`.
    """
    feeds = list(batches(samples, read_proto(model), batch))
    for members in _passes(groups, max_bytes):
        gathering = [_Gathering.of(group, seed, _first_share(feeds)) for group in members]
        _gather(model, gathering, feeds, threads)
        while gathering:
            one = gathering.pop(0)
            moments = one.sums.moments()
            if moments is not None:
                yield one.key, moments


def pair_moments(
    original: Model,
    rewritten: Model,
    tensors: Sequence[tuple[str, str]],
    layer: Layer,
    step: StepSpec,
    samples: Mapping[str, Array],
    *,
    threads: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    batch: int = BATCH,
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
        threads: Threads inside an operator.
        seed: Seed of the places drawn.
        max_bytes: The sums may take half of it.
        batch: Samples run at once where the models allow it.

    Returns:
        The moments; None when the sums would take more memory or a value is not finite.

    Raises:
        UsageError: There are too few samples.
        ModelError: onnxruntime cannot load a model or run it on the samples.
    """
    n_outputs, group, size = step.weight_shape[0], step.geometry.group, _patch_size(step)
    if 8 * size * (group * size + n_outputs) > max_bytes // 2:
        return None
    proto = read_proto(original)
    feeds = list(batches(samples, proto, batch))
    folder = original.parent if isinstance(original, Path) else None
    before = _open(original, [y for y, _ in tensors], threads)
    after = _open(rewritten, [z for _, z in tensors], threads, folder)
    reader = Reader(step, columns=layer.weight_on_left)
    sums = PatchSums(group, size, n_outputs)
    sampler = PlaceSampler(seed, layer.key, _n_wanted(size), _first_share(feeds))
    for feed in feeds:
        originals, inputs = run(before, feed), run(after, feed)
        counts = [prod(reader.shape(inputs[z])) for _, z in tensors]
        for (y, z), numbers in zip(tensors, sampler.draw(counts), strict=True):
            for chunk in _chunks(numbers):
                places = np.unravel_index(chunk, reader.shape(inputs[z]))
                sums.add(reader.patches(inputs[z], places), reader.outputs(originals[y], places))
    return sums.pair_moments()


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy that puts out the tensors of these names, without the nodes that none of them needs.

    Args:
        proto: The model; not modified.
        names: Tensors of the main graph, inputs and constants included, each once.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    graph = copied.graph
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    pending, needed = list(names), set()
    while pending:
        index = producers.get(pending.pop())
        if index is not None and index not in needed:
            needed.add(index)
            pending += _read_by(graph.node[index])
    for index in range(len(graph.node) - 1, -1, -1):
        if index not in needed:
            del graph.node[index]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copied


@dataclass(frozen=True)
class _Gathering:
    """The sums of one layer while they grow.

    Args:
        key: Key of the layer.
        sites: Data tensor and reader of each node.
        sampler: Draws the places.
        sums: The sums.
    """

    key: str
    sites: tuple[tuple[str, Reader], ...]
    sampler: PlaceSampler
    sums: PatchSums

    @classmethod
    def of(cls, group: LayerGroup, seed: int, first_share: float) -> "_Gathering":
        layer, size = group.layer, _patch_size(group.layer.spec)
        sites = tuple(
            (site.data, Reader(layer.spec, columns=layer.weight_on_left or site.trans_a))
            for site in _main_sites(group)
        )
        sampler = PlaceSampler(seed, layer.key, _n_wanted(size), first_share)
        return cls(layer.key, sites, sampler, PatchSums(layer.group, size))

    def add(self, tensors: Feeds) -> None:
        shapes = [reader.shape(tensors[name]) for name, reader in self.sites]
        drawn = self.sampler.draw([prod(shape) for shape in shapes])
        for (name, reader), shape, numbers in zip(self.sites, shapes, drawn, strict=True):
            for chunk in _chunks(numbers):
                self.sums.add(reader.patches(tensors[name], np.unravel_index(chunk, shape)))


def _gather(model: Model, gathering: Sequence[_Gathering], feeds: Sequence[Feeds], threads: int) -> None:
    """Run the model on all samples once."""
    session = _open(model, [name for one in gathering for name, _ in one.sites], threads)
    for feed in feeds:
        tensors = run(session, feed)
        for one in gathering:
            one.add(tensors)


def _passes(groups: Sequence[LayerGroup], max_bytes: int) -> Iterator[list[LayerGroup]]:
    """Cut the layers that can be gathered into runs whose sums fit into `max_bytes` together."""
    members: list[LayerGroup] = []
    taken = 0
    for group in groups:
        size_bytes = 8 * group.layer.group * _patch_size(group.layer.spec) ** 2
        if size_bytes > max_bytes // 2 or not _main_sites(group):
            continue
        if taken + size_bytes > max_bytes:
            yield members
            members, taken = [], 0
        members.append(group)
        taken += size_bytes
    if members:
        yield members


def _main_sites(group: LayerGroup) -> list[Site]:
    """Return the sites in the main graph; tensors in a body cannot become outputs of the model."""
    return [site for site in group.sites if not site.place.scope.prefix]


def _patch_size(spec: StepSpec) -> int:
    """Return D."""
    return prod(spec.weight_shape[1:])


def _n_wanted(size: int) -> int:
    return min(max(ROWS_PER_VALUE * size, MIN_ROWS), MAX_ROWS)


def _first_share(feeds: Sequence[Feeds]) -> float:
    """Return the share of all samples that is in the first feed."""
    counts = [
        max((np.shape(array)[0] for array in feed.values() if np.ndim(array)), default=1) for feed in feeds
    ]
    return counts[0] / max(1, sum(counts))


def _chunks(numbers: Numbers) -> Iterator[Numbers]:
    for start in range(0, len(numbers), CHUNK_ROWS):
        yield numbers[start : start + CHUNK_ROWS]


def _open(
    model: Model, names: Sequence[str], threads: int, folder: Path | None = None
) -> ort.InferenceSession:
    """Open a model so that it puts out these tensors alone."""
    folder = model.parent if isinstance(model, Path) else folder
    return open_session(
        with_outputs(read_proto(model), list(dict.fromkeys(names))), threads=threads, folder=folder
    )


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those that its bodies take from outside included."""
    graphs = []
    for attribute in node.attribute:
        graphs += [attribute.g] if attribute.HasField("g") else []
        graphs += attribute.graphs
    yield from node.input
    for graph in graphs:
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from _read_by(inner)
