"""What the original puts out on the samples, computed by onnxruntime."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.outputs import open_outputs
from onnxdecomp.runtime.session import Array, Model, read_proto, run
from onnxdecomp.tune.batches import Batch
from onnxdecomp.tune.elements import as_computed, to_torch

KEPT_BYTES = 1 << 28
"""Outputs on stored samples, or on batches that come again, are computed once and kept up to so much."""


class Teacher:
    """Puts out tensors of a model, batch by batch.

    Outputs of the model are kept where they are small: on stored samples if they have one row a sample, and
    on batches that come again and again. Intermediate tensors are never kept.

    Args:
        model: The model or its path.
        names: The tensors wanted, of its main graph.
        stored: The samples that `Batch.rows` counts; None keeps nothing of them.
        again: Batches that come again and again, the same objects each time.
        threads: Threads inside an operator.

    Raises:
        ModelError: onnxruntime cannot run the model, or a tensor is not in it.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        *,
        stored: Mapping[str, Array] | None = None,
        again: Sequence[Batch] = (),
        threads: int = 1,
    ) -> None:
        self._session = open_outputs(model, names, threads=threads)
        self._model, self._names, self._threads = model, tuple(names), threads
        if (stored or again) and not _are_outputs(names, model):
            stored, again = None, ()
        self._stored = stored
        self._kept: dict[str, Array] | None = None
        self._again = {id(batch): batch for batch in again}
        self._known: dict[int, dict[str, Array]] = {}
        self._spare_bytes = KEPT_BYTES

    def arrays(self, batch: Batch) -> dict[str, Array]:
        """Return the tensors for a batch as arrays.

        Raises:
            ModelError: onnxruntime cannot run the model on it.
        """
        if self._kept is not None and batch.rows is not None:
            rows = batch.rows
            return {name: array[rows] for name, array in self._kept.items()}
        if id(batch) in self._known:
            return self._known[id(batch)]
        found = run(self._session, batch.feeds)
        self._keep_all(found, batch)
        if id(batch) in self._again and _size_bytes(found) <= self._spare_bytes:
            self._known[id(batch)] = found
            self._spare_bytes -= _size_bytes(found)
        return found

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the tensors for a batch.

        Raises:
            ModelError: onnxruntime cannot run the model on it.
        """
        return {name: as_computed(to_torch(array)) for name, array in self.arrays(batch).items()}

    def _keep_all(self, found: Mapping[str, Array], batch: Batch) -> None:
        """Keep the outputs on all stored samples, if those on a batch show that they are small."""
        stored, self._stored = self._stored, None
        if stored is None:
            return
        n_samples = len(next(iter(stored.values())))
        rows_each = all(np.shape(array)[:1] == (batch.n_samples,) for array in found.values())
        size_bytes = _size_bytes(found) / batch.n_samples * n_samples
        if rows_each and size_bytes <= KEPT_BYTES:
            kept = outputs_over(self._model, stored, threads=self._threads)
            if all(len(kept.get(name, ())) == n_samples for name in self._names):
                self._kept = {name: kept[name] for name in self._names}


def _are_outputs(names: Sequence[str], model: Model) -> bool:
    """Tell whether all these tensors are outputs of the model."""
    return {value.name for value in read_proto(model).graph.output}.issuperset(names)


def _size_bytes(outputs: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in outputs.values())
