"""Moments of what the layers of a model meet on samples, streamed through onnxruntime.

The tensors that layers read become outputs of a copy of the model, and each batch is summed up before the
next one runs: no activation outlives its batch.

Memory: the sums of a layer take ``8 G D^2`` bytes, D being the values of one patch, and a product that is
half as large comes on top while it is added. The sums of the layers of one pass stay below a limit, the
tensors of one batch below an eighth of it (unless a single sample has more), and the patches of a layer that
are held take at most a quarter of its sums, or are a few hundred. Of matrices too wide for such sums rows are
kept, which take at most `MAX_ROW_BYTES`. What onnxruntime itself takes to run a batch comes on top. With
several jobs up to four batches are there at once, and a product for each job.

Batches are summed up in their order and each is run on one thread, as is BLAS, so that every number of jobs
gives the same moments, bit for bit: jobs share out batches to run, and layers to sum up.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from threadpoolctl import threadpool_limits

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.runtime.in_order import in_order
from onnxdecomp.runtime.outputs import open_outputs
from onnxdecomp.runtime.patches import PatchRows, PatchSums, PlaceSampler, Reader
from onnxdecomp.runtime.samples import batch_sizes, batches
from onnxdecomp.runtime.session import Array, Feeds, Model, read_proto, run
from onnxdecomp.weights.moments import Moments, is_thin

Seen = Callable[[Feeds, int], object]
"""Takes some tensors of the model on one batch after the other, and how many samples are in each."""

Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps what is worked through, given what is being done, and shows how far that is."""

MAX_BATCH = 32
"""Samples run at once where memory and the model allow it."""

ACTIVATION_SHARE = 8
"""The tensors gathered from one batch take at most one part in so many of the limit of the sums."""

MAX_AHEAD = 3
"""Batches run side by side at most, whatever the number of jobs, for the memory they take."""

MIN_ROWS, ROWS_PER_VALUE, ROWS_FLOPS = 32_768, 32, 4e11
"""Patches looked at: this many per value of a patch and at least so many, as far as their moment takes no
more operations than this."""

FEW_PER_VALUE, MAX_FEW = 8, 24_000
"""But this many per value at the least, up to so many, whatever their moment takes. Four times as many
patches of the same images lower the divergence of `vgg_cifar` by a tenth after its last steps are fitted to
them."""

MAX_BYTES = 1 << 30
"""Limit of the sums that grow during one pass over the samples."""

MAX_THIN_ROWS, MAX_ROW_BYTES = 2048, 1 << 28
"""Rows kept of a wide matrix at most, and what they take in float64."""


def gather_moments(
    model: Model,
    groups: Sequence[LayerGroup],
    samples: Mapping[str, Array],
    *,
    jobs: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    track: Track | None = None,
    also: Sequence[str] = (),
    seen: Seen | None = None,
) -> dict[str, Moments]:
    """Return the moments of the patches that layers meet on samples, by key of the layer.

    As many patches of a layer are looked at as `n_wanted_of` says, drawn evenly over samples and positions; a
    weight that several nodes share sees those of all of them. What is drawn depends on the seed and the
    layer, not on the other layers, nor on how many samples run at once.

    All results together take ``8 G D^2`` bytes a layer; `stream_moments` hands them out pass by pass.

    Args:
        model: The model or its path; not modified.
        groups: Layers of that model.
        samples: As `load_samples` returns them.
        jobs: Batches run side by side.
        seed: Seed of the positions drawn.
        max_bytes: Limit of the sums of one pass; the samples are run as often as that takes.
        track: Shows progress over the batches of a pass.
        also: Other tensors of the main graph that are wanted on these samples, in the order of these.
        seen: Takes them.

    Returns:
        A `Moments` per layer, but for layers in bodies of other nodes, layers whose sums alone would take
        more than half of `max_bytes`, and layers that met values which are not finite.

    Raises:
        UsageError: There are too few samples.
        ModelError: onnxruntime cannot load the model or run it on the samples.
    """
    return dict(
        stream_moments(
            model,
            groups,
            samples,
            jobs=jobs,
            seed=seed,
            max_bytes=max_bytes,
            track=track,
            also=also,
            seen=seen,
        )
    )


def stream_moments(
    model: Model,
    groups: Sequence[LayerGroup],
    samples: Mapping[str, Array],
    *,
    jobs: int = 1,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    track: Track | None = None,
    thin: bool = True,
    also: Sequence[str] = (),
    seen: Seen | None = None,
) -> Iterator[tuple[str, Moments]]:
    """Yield what `gather_moments` returns, layer by layer; the sums of one pass are kept until the next.

    Args, Raises: As `gather_moments`; with `thin` off wide matrices get moments like all others.
    """
    proto = read_proto(model)
    wide = {group.layer.key for group in groups if thin and is_thin(group.layer)}
    for members in _passes(groups, wide, _longest(samples), max_bytes):
        names = [site.data for group in members for site in group.main_sites]
        session = open_outputs(model, [*names, *also])
        feeds, sizes = sized_feeds([session], samples, proto, max_bytes // ACTIVATION_SHARE)
        n_samples = sum(sizes)
        gathering = [_Gathering.of(group, seed, n_samples, thin=group.layer.key in wide) for group in members]
        shown = track(sizes, "gathering moments") if track else sizes
        batches_run = in_order(partial(run, session), feeds, min(jobs, MAX_AHEAD))
        with threadpool_limits(1, "blas"):
            for size, tensors in zip(shown, batches_run, strict=True):
                add = partial(_Gathering.add, tensors=tensors, n_samples=size)
                deque(in_order(add, gathering, jobs), maxlen=0)
                if seen and also:
                    seen({name: tensors[name] for name in also}, size)
        del session, tensors
        also = ()
        while gathering:
            one = gathering.pop(0)
            moments = one.sums.moments()
            if moments is not None:
                yield one.key, moments


@dataclass(frozen=True)
class _Gathering:
    """The sums of one layer while they grow.

    Args:
        key: Key of the layer.
        sites: Data tensor, reader and sampler of each node.
        sums: The sums.
    """

    key: str
    sites: tuple[tuple[str, Reader, PlaceSampler], ...]
    sums: PatchSums | PatchRows

    @classmethod
    def of(cls, group: LayerGroup, seed: int, n_samples: int, *, thin: bool) -> "_Gathering":
        layer, size, sites = group.layer, values_per_patch(group.layer.spec), group.main_sites
        readers = (Reader(layer.spec, columns=layer.weight_on_left or site.trans_a) for site in sites)
        n_wanted = _n_rows_of(size) if thin else n_wanted_of(size)
        samplers = samplers_of(layer, len(sites), n_wanted, seed, n_samples)
        names = (site.data for site in sites)
        sums = PatchRows(size) if thin else PatchSums(layer.group, size)
        return cls(layer.key, tuple(zip(names, readers, samplers, strict=True)), sums)

    def add(self, tensors: Feeds, n_samples: int) -> None:
        for name, reader, sampler in self.sites:
            for places in sampler.draw(reader.shape(tensors[name]), n_samples):
                self.sums.add(reader.patches(tensors[name], places))


def samplers_of(layer: Layer, n_sites: int, n_wanted: int, seed: int, n_samples: int) -> list[PlaceSampler]:
    """Return what draws the places of each node that shares a weight, so many places together."""
    each = n_wanted / n_sites
    return [PlaceSampler(seed, f"{layer.key}#{site}", each, n_samples) for site in range(n_sites)]


def n_wanted_of(size: int) -> int:
    """Return how many patches of `size` values are looked at."""
    many = min(max(ROWS_PER_VALUE * size, MIN_ROWS), int(ROWS_FLOPS / (2 * size**2)))
    return max(many, min(FEW_PER_VALUE * size, MAX_FEW))


def _n_rows_of(size: int) -> int:
    """Return how many rows of a wide matrix are kept."""
    return max(1, min(MAX_THIN_ROWS, MAX_ROW_BYTES // (8 * size)))


def _most_rows_of(layer: Layer, n_samples: int) -> int:
    """Return how many rows of a wide matrix are kept at the most."""
    n_wanted = _n_rows_of(values_per_patch(layer.spec))
    return n_wanted if layer.in_shape is None else min(n_wanted, n_samples * prod(layer.in_shape))


def _passes(
    groups: Sequence[LayerGroup], wide: Collection[str], n_samples: int, max_bytes: int
) -> Iterator[list[LayerGroup]]:
    """Cut the layers that can be gathered into runs whose sums fit into `max_bytes` together.

    Of those whose keys are `wide` rows are kept, no more than the samples have.
    """
    members: list[LayerGroup] = []
    taken = 0
    for group in groups:
        size = values_per_patch(group.layer.spec)
        is_wide = group.layer.key in wide
        n_rows = _most_rows_of(group.layer, n_samples) if is_wide else group.layer.group * size
        size_bytes = 8 * size * n_rows
        if size_bytes > max_bytes // 2 or not group.main_sites:
            continue
        if taken + size_bytes > max_bytes:
            yield members
            members, taken = [], 0
        members.append(group)
        taken += size_bytes
    if members:
        yield members


def values_per_patch(spec: StepSpec) -> int:
    """Return D, the values of a patch."""
    return prod(spec.weight_shape[1:])


def sized_feeds(
    sessions: Sequence[ort.InferenceSession],
    samples: Mapping[str, Array],
    proto: onnx.ModelProto,
    limit_bytes: int,
) -> tuple[list[Feeds], list[int]]:
    """Return feeds of as many samples as put out `limit_bytes` at most, and how many are in each.

    How many that may be is found by running the first sample.
    """
    batch = MAX_BATCH
    first = next(batches(samples, proto, 1))
    (n_first, *_) = _sizes(samples, proto, 1)
    try:
        arrays = [array for session in sessions for array in run(session, first).values()]
    except ModelError:  # its first axis takes other sizes than it says
        pass
    else:
        size_bytes = sum(array.nbytes for array in arrays) // n_first
        batch = min(max(limit_bytes // max(1, size_bytes), 1), MAX_BATCH)
    return list(batches(samples, proto, batch)), _sizes(samples, proto, batch)


def _sizes(samples: Mapping[str, Array], proto: onnx.ModelProto, batch: int) -> list[int]:
    """Return how many samples are in each feed; arrays of different lengths are one."""
    return batch_sizes(samples, proto, batch) or [_longest(samples)]


def _longest(samples: Mapping[str, Array]) -> int:
    """Return how many samples there are; the longest first axis also serves where they are no batch."""
    return max((len(array) for array in samples.values() if np.ndim(array)), default=1)
