"""Where training gets its samples from: arrays, drawn anew in each epoch, or a function that yields batches.

Some are set aside: no step sees them, and training stops when it no longer helps them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.errors import TooFewSamplesError, UsageError
from onnxdecomp.runtime.feeds import input_specs
from onnxdecomp.runtime.samples import (
    LABELS,
    batches,
    call_function,
    check_samples,
    function_failed,
    load_samples,
)
from onnxdecomp.runtime.session import Array
from onnxdecomp.tune.settings import Settings

HELD_OUT = 0.125
"""Share of the samples that is set aside."""

FEWEST = 8
"""Fewer samples than these are refused: nothing would be left to stop by."""

HELD_OUT_BATCHES = 8
"""Batches that are set aside of those a function yields."""


@dataclass(frozen=True)
class Batch:
    """A complete input of a model.

    Args:
        feeds: Arrays by input name.
        labels: Those of its samples; None where nobody asked for them.
        rows: Which of the stored samples they are, ``(n,)``; None for what a function yielded.
        theirs: What the teacher makes of them, where that is known already.
    """

    feeds: dict[str, Array]
    labels: Array | None = None
    rows: NDArray[np.int64] | None = None
    theirs: Mapping[str, Array] | None = None

    @property
    def n_samples(self) -> int:
        """How many samples these are."""
        if self.rows is not None:
            return len(self.rows)
        return max((len(array) for array in self.feeds.values() if np.ndim(array)), default=1)


class Source(Protocol):
    """Batches to train on, and those set aside."""

    @property
    def held_out(self) -> Iterable[Batch]:
        """What no step sees."""
        ...

    @property
    def stored(self) -> Mapping[str, Array] | None:
        """The samples that `Batch.rows` counts; None where there are none to keep."""
        ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, the same ones for the same number."""
        ...


def open_source(settings: Settings, model: onnx.ModelProto, *, labels: bool) -> Source:
    """Return the source that the settings name.

    Args:
        settings: `calibration`, `held_out`, `batch` and `seed` count.
        model: The model to be trained.
        labels: Whether every sample needs a label.

    Raises:
        UsageError: There is none, it cannot be read, or what it holds does not fit the model.
        TooFewSamplesError: There are not enough to set some aside.
    """
    reference = settings.calibration
    if reference is None:
        raise UsageError("there is nothing to train on: give samples with --calibration")
    apart: tuple[Batch, ...] | None = None
    if settings.held_out is not None:
        samples = load_samples(settings.held_out, model, labels=labels)
        apart = tuple(_without_rows(_cut(samples, model, np.arange(_count(samples)), settings.batch)))
    if ":" in reference and not Path(reference).exists():
        made = call_function(reference, epoch=0)
        if not isinstance(made, Mapping):
            return _Yielded(reference, model, labels, apart)
        arrays = {name: np.asarray(array) for name, array in made.items()}
        samples = check_samples(arrays, reference, model, labels=labels)
    else:
        samples = load_samples(reference, model, labels=labels)
    return _Stored.split(samples, model, settings, apart)


@dataclass(frozen=True)
class _Stored:
    """Samples in arrays; each epoch draws its own order of them."""

    stored: Mapping[str, Array]
    model: onnx.ModelProto
    rows: NDArray[np.int64]
    held_out: tuple[Batch, ...]
    batch: int
    seed: int

    @classmethod
    def split(
        cls,
        samples: Mapping[str, Array],
        model: onnx.ModelProto,
        settings: Settings,
        apart: tuple[Batch, ...] | None,
    ) -> "_Stored":
        """Set some samples aside, whole batches where the model's batch is fixed."""
        step, n_samples = _fixed_batch(samples, model), _count(samples)
        n_units = n_samples // step
        if n_units < 2 or n_samples < FEWEST:
            raise TooFewSamplesError(
                f"there are {n_samples} samples, and {max(2 * step, FEWEST)} are needed: some are set aside "
                "to see when training no longer helps"
            )
        order = np.random.default_rng(settings.seed).permutation(n_samples)[: n_units * step]
        n_apart = 0 if apart is not None else max(1, round(HELD_OUT * n_units)) * step
        if apart is None:
            apart = tuple(_cut(samples, model, np.sort(order[:n_apart]), settings.batch))
        return cls(samples, model, np.sort(order[n_apart:]), apart, settings.batch, settings.seed)

    def epoch(self, number: int) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, number)).permutation(self.rows)
        return _cut(self.stored, self.model, order, self.batch)


@dataclass(frozen=True)
class _Yielded:
    """Batches of a function of the user, called anew for each epoch.

    Without samples of their own to stop by, the first batches of every epoch are set aside; that keeps
    them unseen where the function goes through its samples in one order.
    """

    reference: str
    model: onnx.ModelProto
    labels: bool
    given: tuple[Batch, ...] | None
    held_out: tuple[Batch, ...] = field(init=False)
    stored: None = None

    def __post_init__(self) -> None:
        apart = self.given
        if apart is None:
            batches_of = self._batches(0)
            apart = tuple(batch for batch, _ in zip(batches_of, range(HELD_OUT_BATCHES), strict=False))
            if next(batches_of, None) is None:
                raise TooFewSamplesError(
                    f"{self.reference} yields {len(apart)} batches and the first {HELD_OUT_BATCHES} are set "
                    "aside: yield more of them, or give other samples to stop by with --held-out"
                )
        object.__setattr__(self, "held_out", apart)

    def epoch(self, number: int) -> Iterator[Batch]:
        n_apart = HELD_OUT_BATCHES if self.given is None else 0
        found = -1
        for found, batch in enumerate(self._batches(number)):
            if found >= n_apart:
                yield batch
        if found < n_apart:
            raise TooFewSamplesError(
                f"{self.reference} yields {found + 1} batches in epoch {number} and {n_apart + 1} are needed"
            )

    def _batches(self, number: int) -> Iterator[Batch]:
        made = iter(self._called(number))
        while True:
            try:
                arrays = next(made)
            except StopIteration:
                return
            except UsageError:
                raise
            except Exception as error:  # whatever a function of the user raises
                raise function_failed(self.reference, error) from error
            if not isinstance(arrays, Mapping):
                raise UsageError(
                    f"{self.reference} yielded {type(arrays).__name__}, not a dictionary of arrays by input "
                    "name."
                )
            named = {name: np.asarray(array) for name, array in arrays.items()}
            samples = check_samples(named, self.reference, self.model, labels=self.labels)
            truth = samples[LABELS] if self.labels else None
            yield Batch({name: samples[name] for name in input_specs(self.model)}, truth)

    def _called(self, number: int) -> Any:
        made = call_function(self.reference, epoch=number)
        if not hasattr(made, "__iter__"):
            raise UsageError(
                f"{self.reference} returned {type(made).__name__}: return a dictionary of arrays by input "
                "name, or yield such dictionaries."
            )
        return made


def _cut(
    samples: Mapping[str, Array], model: onnx.ModelProto, rows: NDArray[np.int64], size: int
) -> Iterator[Batch]:
    """Yield these rows of the samples, in this order, as batches."""
    names = input_specs(model)
    step = _fixed_batch(samples, model)
    if step == 1 and not _are_whole(samples, model):
        step = max(size, 1)
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        feeds = next(batches({name: samples[name][chosen] for name in names}, model, len(chosen)))
        yield Batch(feeds, samples[LABELS][chosen] if LABELS in samples else None, chosen)


def _fixed_batch(samples: Mapping[str, Array], model: onnx.ModelProto) -> int:
    """Return how many samples the model takes at once; 1 where that is open or each is a whole input."""
    if _are_whole(samples, model):
        return 1
    specs = input_specs(model).values()
    sizes = [spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)]
    return max((size for size in sizes if isinstance(size, int)), default=1)


def _are_whole(samples: Mapping[str, Array], model: onnx.ModelProto) -> bool:
    return any(np.ndim(samples[name]) > len(spec.shape) for name, spec in input_specs(model).items())


def _count(samples: Mapping[str, Array]) -> int:
    return len(next(iter(samples.values())))


def _without_rows(cut: Iterator[Batch]) -> Iterator[Batch]:
    for batch in cut:
        yield Batch(batch.feeds, batch.labels)
