"""What each layer may become: methods and ranks over a range of costs, fitted to data and timed.

For every method one aligned candidate per share of the layer's MACs; those that another one beats in both
time and estimated error go. The rest are fitted in each way of `weights.fit`, with their exact error on the
data.

Layers are factorized side by side before and after all of them are timed, one after the other: nothing else
runs while the clock does.

What was found is remembered without the chains: those of a search that finds all of it are made when they are
asked for, the same bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

from onnxdecomp.errors import ModelError
from onnxdecomp.methods.base import Chain, FloatArray
from onnxdecomp.ranks.study import Candidate, Measured
from onnxdecomp.runtime.cache import canonical
from onnxdecomp.search.fitting import Fitted, Fitter, Task, fitted, spread
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.replacement import Made, Replacement
from onnxdecomp.search.subject import Subject, name_of, recalled, told
from onnxdecomp.search.track import Track, untracked
from onnxdecomp.search.workers import Workers, alone
from onnxdecomp.selection import Target
from onnxdecomp.weights.fit import FITS, SHRUNK, Fit, distinct_fits
from onnxdecomp.weights.refit import patch_size

MIN_SHARED_MACS = 50_000_000
"""Less work than this takes no longer than starting workers: multiply-accumulates of all weights, each laid
on the moment of its input once. Counted and not timed, since it must not change anything but the time."""

SPREAD, ERRORS = "spread", "fitted"
"""Kinds of what is remembered: the candidates of a layer, and their errors on the data in one fit."""


@dataclass(frozen=True)
class Option:
    """One chain for one layer.

    Args:
        candidate: Method, ranks and what they cost; its error is the one on the data.
        fit: How it was fitted.
        make: Returns the chain, each time the same one.
        ratio: Time of the chain over that of the layer, alone in onnxruntime.
        size_bytes: What its weights take in the file.
        identity: What the chain follows from, given model, samples and settings.
    """

    candidate: Candidate
    fit: Fit
    make: Callable[[], Fitted]
    ratio: float
    size_bytes: int
    identity: str

    @property
    def error(self) -> float:
        """Relative error of the layer's output on the data."""
        return self.candidate.error

    @property
    def chain(self) -> Chain:
        """The chain."""
        return self.make().chain

    @property
    def bias(self) -> FloatArray | None:
        """``(O,)`` with the mean of what is lost; None keeps the layer's."""
        return self.make().bias


@dataclass
class LayerOptions:
    """A layer, and what it may become.

    Args:
        target: The layer.
        weight: ``(O, I/G, *K)``.
        options: By name of the fit, cheapest last.
    """

    target: Target
    weight: FloatArray
    options: Mapping[str, list[Option]]

    @property
    def key(self) -> str:
        """Key of the layer."""
        return self.target.group.layer.key

    def replacement(self, option: Option) -> Replacement:
        """Return what an option puts in the place of the layer."""

        def made() -> Made:
            return option.chain, option.bias

        return Replacement.later(self.target.group, option.identity, made)


@dataclass(frozen=True)
class Timed:
    """A layer with the candidates that are worth fitting.

    Args:
        subject: The layer.
        key: What `spread` follows from.
        spread: All candidates that were looked at.
        kept: Those that are fitted, with their latencies, cheapest last.
    """

    subject: Subject
    key: Mapping[str, object]
    spread: Sequence[Candidate]
    kept: Sequence[tuple[Candidate, Measured]]


def find_options(
    subjects: Sequence[Subject],
    fits: Sequence[Fit] = FITS,
    *,
    jobs: int = 1,
    track: Track = untracked,
    memory: Memory | None = None,
) -> list[LayerOptions | str]:
    """Return for each layer its options, or why it has none; the same for any number of jobs.

    Args:
        subjects: The layers.
        fits: Ways to fit.
        jobs: Processes to factorize in.
        track: Shows progress over the layers.
        memory: Keeps what was found, for the next search of the same model on the same samples.
    """
    guide = next((fit for fit in fits if fit.shrinkage == SHRUNK.shrinkage), fits[0])
    with Workers(jobs if _work(subjects) >= MIN_SHARED_MACS else 1) as workers:
        spreads = _spreads(subjects, guide, workers, track, memory)
        timed = [
            candidates if isinstance(candidates, str) else _timed(subject, subject.key(guide), candidates)
            for subject, candidates in zip(track(subjects, "timing"), spreads, strict=True)
        ]
        return _fitted(timed, fits, workers, track, memory)


def _spreads(
    subjects: Sequence[Subject], guide: Fit, workers: Workers, track: Track, memory: Memory | None
) -> list[list[Candidate] | str]:
    """Return the candidates of each layer that are worth timing, or why there are none."""
    known = [memory.get(SPREAD, subject.key(guide)) if memory else None for subject in subjects]
    new = [subject.task(guide) for subject, one in zip(subjects, known, strict=True) if one is None]
    made = workers.map(spread, new)
    found: list[list[Candidate] | str] = []
    for subject, one in zip(track(subjects, "factorizing"), known, strict=True):
        candidates = recalled(subject.study, one) if one else next(made)
        if memory and one is None:
            memory.put(SPREAD, subject.key(guide), told(candidates))
        found.append(candidates)
    return found


def _work(subjects: Iterable[Subject]) -> int:
    """Return the multiply-accumulates of laying every weight on the moment of its input."""
    return sum(s.study.layer.n_params * patch_size(s.study.layer) for s in subjects)


def _timed(subject: Subject, key: Mapping[str, object], candidates: list[Candidate]) -> Timed | str:
    """Return the candidates that are faster than the layer and that none beats in time and error."""
    study = subject.study
    if study.measure is None:
        return "nothing can be timed"
    try:
        timings = study.measure(study.layer, candidates)
    except ModelError as error:  # onnxruntime cannot run this layer alone
        return f"it cannot be timed: {error}"
    faster = [(c, m) for c, m in zip(candidates, timings, strict=True) if m.speedup_low > 1.0]
    faster.sort(key=lambda pair: (pair[1].chain_ms / pair[1].dense_ms, pair[0].error))
    kept: list[tuple[Candidate, Measured]] = []
    least = float("inf")
    for candidate, timing in faster:
        if candidate.error < least:
            kept.append((candidate, timing))
            least = candidate.error
    if not kept:
        return f"not faster: none of {len(candidates)} chains that were timed beats the layer"
    return Timed(subject, key, candidates, kept[::-1])


class _Fits:
    """One way to fit a layer: what is known of its chains, and what is to be made now.

    Args:
        timed: The layer.
        fit: The way.
        memory: What is known.
    """

    def __init__(self, timed: Timed, fit: Fit, memory: Memory | None) -> None:
        self._timed, self._fit, self._memory = timed, fit, memory
        self._key = {**timed.key, "fit": asdict(fit)}
        self._errors = (memory.get(ERRORS, self._key) if memory else None) or {}
        missing = [c for c, _ in timed.kept if name_of(c) not in self._errors]
        self.task = self._task(missing) if missing else None

    def options(self, made: Sequence[Fitted], fitter: Fitter) -> list[Option]:
        """Return the options, given what was made for `task`."""
        new = {} if self.task is None else dict(zip(map(name_of, self.task.candidates), made, strict=True))
        if new and self._memory:
            self._errors |= {name: one.error for name, one in new.items()}
            self._memory.put(ERRORS, self._key, self._errors)
        return [self._option(c, timing, new.get(name_of(c)), fitter) for c, timing in self._timed.kept]

    def _option(self, candidate: Candidate, timing: Measured, made: Fitted | None, fitter: Fitter) -> Option:
        make = partial(alone, fitter.fitted, self._task([candidate]))
        return Option(
            replace(
                candidate, error=made.error if made else self._errors[name_of(candidate)], measured=timing
            ),
            self._fit,
            (lambda: made) if made else cache(make),
            timing.chain_ms / timing.dense_ms,
            candidate.n_params * self._timed.subject.target.group.dtype.itemsize,
            canonical({**self._key, "candidate": name_of(candidate)}),
        )

    def _task(self, candidates: Sequence[Candidate]) -> Task:
        return self._timed.subject.task(self._fit, candidates, self._timed.spread)


def _fitted(
    timed: Sequence[Timed | str], fits: Sequence[Fit], workers: Workers, track: Track, memory: Memory | None
) -> list[LayerOptions | str]:
    """Return the options of each layer, or why it has none."""
    ways = [
        one
        if isinstance(one, str)
        else (one, {f.name: _Fits(one, f, memory) for f in distinct_fits(fits, one.subject.study.layer)})
        for one in timed
    ]
    tasks = [
        way.task
        for one in ways
        if not isinstance(one, str)
        for way in one[1].values()
        if way.task is not None
    ]
    made, fitter = workers.map(fitted, tasks), Fitter()
    found: list[LayerOptions | str] = []
    for one in track(ways, "fitting"):
        if isinstance(one, str):
            found.append(one)
            continue
        layer, own = one
        options = {name: way.options(next(made) if way.task else [], fitter) for name, way in own.items()}
        found.append(LayerOptions(layer.subject.target, layer.subject.study.weight, options))
    return found
