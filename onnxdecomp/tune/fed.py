"""Samples of a block in the middle of a model: what the teacher's layers before it put out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from onnxdecomp.runtime.session import Array
from onnxdecomp.tune.batches import Batch, Source
from onnxdecomp.tune.elements import as_computed, to_torch
from onnxdecomp.tune.losses import MeanSquare, Objective
from onnxdecomp.tune.objective import first_and_powers, power_of
from onnxdecomp.tune.teacher import Teacher


@dataclass(frozen=True)
class Fed:
    """A source whose batches hold tensors of the teacher; they are computed when asked for and not kept.

    Args:
        source: The samples.
        teacher: Puts out what the block reads, and what it should put out.
        reads: Tensors that the block reads, inputs of the whole model included.
    """

    source: Source
    teacher: Teacher
    reads: tuple[str, ...]
    stored: None = None

    @property
    def held_out(self) -> Iterator[Batch]:
        """What no step sees."""
        return map(self._fed, self.source.held_out)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        return map(self._fed, self.source.epoch(number))

    def targets(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what the teacher makes of a batch."""
        return {name: as_computed(to_torch(array)) for name, array in (batch.theirs or {}).items()}

    def mean_square(self, names: tuple[str, ...]) -> Objective:
        """Return how far tensors are from the teacher's as a loss."""
        _, powers = first_and_powers(_theirs(batch) for batch in self.held_out)
        term = MeanSquare({name: power_of(name, powers) for name in names})
        return Objective(((1.0, term),), names, needs_labels=False, title="mse")

    def _fed(self, batch: Batch) -> Batch:
        theirs = self.teacher.arrays(batch)
        feeds = {name: theirs[name] if name in theirs else batch.feeds[name] for name in self.reads}
        return Batch(feeds, batch.labels, batch.rows, theirs)


def _theirs(batch: Batch) -> Mapping[str, Array]:
    return batch.theirs or {}
