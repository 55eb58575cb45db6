"""Run only what comes after some tensors of a model: what stands before them is run once and kept.

To see what many forms of one layer do to the outputs, nothing before the layer has to run again, and what
comes behind it is loaded once: only the form itself is new to onnxruntime. What was kept for one layer is run
on to the next: in the order of the model all of them together cost one run of it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx

from onnxdecomp.graph.names import reads
from onnxdecomp.runtime.evaluate import Outputs, all_joined
from onnxdecomp.runtime.in_order import in_order
from onnxdecomp.runtime.outputs import Between, open_between, open_outputs, varying
from onnxdecomp.runtime.samples import batch_sizes, batches
from onnxdecomp.runtime.session import Array, Feeds, run

MAX_BYTES = 1 << 29
"""Most memory that kept tensors may take."""


@dataclass
class Suffix:
    """The part of a model that depends on some of its tensors.

    Args:
        proto: The model.
        ends: What changed models make in their own way. Behind them they are like the model.
        frontier: What that part reads of the rest, batch by batch.
        outputs: Outputs of the model that it makes.
        others: The other outputs, on all samples.
        order: All outputs in the order of the model.
        sizes: Samples of each batch; None where rows are no samples.
    """

    proto: onnx.ModelProto
    ends: tuple[str, ...]
    frontier: Sequence[Feeds]
    outputs: tuple[str, ...]
    others: Mapping[str, Array]
    order: tuple[str, ...]
    sizes: Sequence[int] | None = None
    _behind: Between | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(
        cls,
        proto: onnx.ModelProto,
        tensors: Collection[str],
        samples: Mapping[str, Array],
        reference: Outputs,
        *,
        ends: Sequence[str] = (),
        batch: int,
        jobs: int = 1,
        max_bytes: int = MAX_BYTES,
        start: "Suffix | None" = None,
    ) -> "Suffix | None":
        """Run the model up to some tensors of its main graph.

        Args:
            proto: The model, all of its weights inside.
            tensors: Outputs of the nodes that will be replaced by others with the same inputs.
            samples: As `load_samples` returns them, without labels.
            reference: The model's outputs on them that are asked for.
            ends: What those others make, if that is not the same tensors.
            batch: Samples run at once where the model allows it.
            jobs: Batches run side by side.
            max_bytes: Most memory that the kept tensors may take.
            start: A suffix of the same model and samples to run on from, as far as that is possible. What it
                keeps is there beside the new one meanwhile.

        Returns:
            None when they would take more, or are not all plain tensors, or no output depends on `tensors`.
        """
        names, changed = _frontier(proto.graph, tensors)
        order = tuple(output.name for output in proto.graph.output)
        outputs = tuple(name for name in order if name in changed and name in reference)
        if not names or not outputs:
            return None
        made = None if start is None else start._run_on(proto, names, jobs)
        if made is None:
            session = open_outputs(proto, names)
            made = in_order(partial(run, session), batches(samples, proto, batch), jobs)
        kept: list[Feeds] = []
        size_bytes = 0
        for found in made:
            if not all(isinstance(array, np.ndarray) for array in found.values()):
                return None
            size_bytes += sum(array.nbytes for array in found.values())
            if size_bytes > max_bytes:
                return None
            kept.append(found)
        others = {name: array for name, array in reference.items() if name not in changed}
        sizes = batch_sizes(samples, proto, batch) if start is None else start.sizes
        return cls(proto, tuple(ends or tensors), kept, outputs, others, order, sizes)

    def run(self, proto: onnx.ModelProto, jobs: int = 1) -> Outputs:
        """Return the outputs, on all samples, of a model that differs only between the frontier and the ends.

        Args:
            proto: The model, all of its weights inside.
            jobs: Batches run side by side.

        Raises:
            ModelError: onnxruntime cannot run it.
        """
        changed = open_between(proto, self.frontier, self.ends)
        assert changed is not None
        behind = self._behind
        if behind is None:
            several = [changed(self.frontier[index]) for index in (0, -1)]  # the last batch may be smaller
            behind = self._behind = open_between(self.proto, several, self.outputs)
        assert behind is not None
        parts = list(in_order(lambda feed: behind(changed(feed)), self.frontier, jobs))
        found = {**self.others, **all_joined(parts, self.sizes)}
        return {name: found[name] for name in self.order if name in found}

    def _run_on(self, proto: onnx.ModelProto, names: Sequence[str], jobs: int) -> Iterable[Feeds] | None:
        """Return tensors of the original, batch by batch, made of what was kept; None if they need more."""
        part = open_between(proto, self.frontier, names)
        if part is None:
            return None
        made = in_order(part, self.frontier, jobs)
        return ({name: tensors[name] for name in names} for tensors in made)


def _frontier(graph: onnx.GraphProto, tensors: Collection[str]) -> tuple[list[str], set[str]]:
    """Return what the nodes behind `tensors` read of the others, and all that depends on `tensors`.

    The nodes that make `tensors` are among those behind.
    """
    depends = varying(graph)
    changed: set[str] = set()
    read: dict[str, None] = {}
    for node in graph.node:
        inputs = [name for name in reads(node) if name]
        if depends.isdisjoint(inputs):
            continue
        if changed.isdisjoint(inputs) and not any(name in tensors for name in node.output):
            continue
        changed.update(name for name in node.output if name)
        read.update(dict.fromkeys(inputs))
    return [name for name in read if name in depends and name not in changed], changed
