"""Run models that change from front to back on the same batches, every part of them once.

Layer after layer something is measured and changed. What the nodes before the next change put out, and the
nodes behind it read, is kept; the changed model goes on from there, so that all layers together take about
one run of the model and not one half of a run each.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxdecomp.graph.names import reads
from onnxdecomp.runtime.in_order import in_order
from onnxdecomp.runtime.outputs import open_between, varying
from onnxdecomp.runtime.session import Feeds

MAX_BYTES = 1 << 29
"""Most memory that kept tensors may take."""


class Passage:
    """A set of batches on its way through a model.

    Memory: what is kept stays below `max_bytes`, twice that while it is exchanged; where it would take more,
    the next run begins where the last one began.

    Args:
        feeds: The batches at the inputs of the model.
        jobs: Batches run side by side.
        max_bytes: Most memory that kept tensors may take.
    """

    def __init__(self, feeds: Sequence[Feeds], *, jobs: int = 1, max_bytes: int = MAX_BYTES) -> None:
        self._start = self._kept = list(feeds)
        self._jobs, self._max_bytes = jobs, max_bytes

    def run(
        self, proto: onnx.ModelProto, names: Sequence[str], place: int, folder: Path | None = None
    ) -> Iterator[Feeds]:
        """Yield some tensors batch by batch, and move to a place when all batches have been yielded.

        Args:
            proto: The model, which may differ from that of the run before behind the place moved to there.
            names: Tensors of the main graph that depend on its inputs.
            place: Index of the first node that the next model may have otherwise.
            folder: Where external data lies.

        Raises:
            ModelError: onnxruntime cannot load the part of the model or run it.
        """
        live = _live_at(proto.graph, place)
        part = open_between(proto, self._kept, [*names, *live], folder=folder)
        if part is None:  # not behind the place that was moved to
            self._kept = self._start
            part = open_between(proto, self._kept, [*names, *live], folder=folder)
        assert part is not None
        moved: list[Feeds] | None = []
        size_bytes = 0
        for tensors in in_order(part, self._kept, self._jobs):
            if moved is not None:
                moved.append({name: tensors[name] for name in live})
                arrays = [array for array in moved[-1].values() if isinstance(array, np.ndarray)]
                size_bytes += sum(array.nbytes for array in arrays)
                if len(arrays) < len(live) or size_bytes > self._max_bytes:
                    moved = None
            yield {name: tensors[name] for name in names}
        if moved is not None:
            self._kept = moved


def _live_at(graph: onnx.GraphProto, place: int) -> list[str]:
    """Return what nodes from a place on read of what stands before it and depends on the inputs."""
    depends = varying(graph)
    made = {name for node in graph.node[place:] for name in node.output}
    read = (name for node in graph.node[place:] for name in reads(node))
    return [name for name in dict.fromkeys(read) if name in depends and name not in made]
