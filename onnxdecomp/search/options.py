"""What each layer may become: methods and ranks over a range of costs, fitted to data and timed.

For every method one aligned candidate per share of the layer's MACs; those that another one beats in both
time and estimated error go. One in the cheaper half of the rest is fitted in each way of `weights.fit`; the
others follow in the way that serves the network best (`complete`), or when they are asked for.

Layers are factorized side by side before and after all of them are timed, one after the other: nothing else
runs while the clock does.

What was found is remembered without the chains: those of a search that finds all of it are made when they are
asked for, the same bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.layer import Layer
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

T = TypeVar("T")

MIN_SHARED_MACS = 50_000_000
"""Less work than this takes no longer than starting workers: multiply-accumulates of all weights, each laid
on the moment of its input once. Counted and not timed, since it must not change anything but the time."""

MAX_OPTIONS, MAX_OPTIONS_OF_LARGE = 24, 12
"""Options of a layer, and of one in a model whose runs are long."""

MIN_FITTED, MAX_FITTED_MACS = 6, 3e10
"""Candidates of a layer that are fitted: so many or three quarters of its options at the least, or as many as
take this work, counted alike."""

TIMED_FOR_EACH, TIMED_FOR_EACH_OF_LARGE = 2.0, 1.5
"""Candidates that are timed for each that is fitted, and in a model whose runs are long."""

SPREAD, ERRORS = "spread", "fitted"
"""Kinds of what is remembered: the candidates of a layer, and their errors on the data in one fit."""


@dataclass(frozen=True)
class Option:
    """One chain for one layer.

    Args:
        candidate: Method, ranks and what they cost; its error is an estimate.
        fit: How it was fitted.
        make: Returns the chain, each time the same one.
        measure: Returns the relative error of the layer's output on the data.
        ratio: Time of the chain over that of the layer, alone in onnxruntime.
        size_bytes: What its weights take in the file.
        identity: What the chain follows from, given model, samples and settings.
    """

    candidate: Candidate
    fit: Fit
    make: Callable[[], Fitted]
    measure: Callable[[], float]
    ratio: float
    size_bytes: int
    identity: str

    @property
    def error(self) -> float:
        """Relative error of the layer's output on the data."""
        return self.measure()

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
        load: Returns its weight ``(O, I/G, *K)``, in the channels that its form has.
        options: By name of the fit, cheapest last.
        ways: What makes their chains, by name of the fit.
        form: What tells it from other forms of the same layer; empty for the layer as it is.
        beside: Other layers, each with the one option that it takes wherever this one takes any.
    """

    target: Target
    load: Callable[[], FloatArray]
    options: Mapping[str, list[Option]]
    ways: "Mapping[str, Way]"
    form: str = ""
    beside: "tuple[Part, ...]" = ()

    @property
    def weight(self) -> FloatArray:
        """Its weight."""
        return self.load()

    @property
    def key(self) -> str:
        """Key of the layer."""
        return self.target.group.layer.key

    @property
    def name(self) -> str:
        """Key and form."""
        return f"{self.key} {self.form}" if self.form else self.key

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """All that is replaced where the layer becomes an option."""
        return self.target.group, *(layer.target.group for layer, _ in self.beside)

    def parts(self, option: Option) -> "tuple[Part, ...]":
        """Return what that becomes where the layer becomes an option."""
        return (self, option), *self.beside

    def replacement(self, option: Option) -> Replacement:
        """Return what an option puts in the place of the layer."""

        def made() -> Made:
            return option.chain, option.bias

        return Replacement.later(self.target.group, option.identity, made)


Part = tuple[LayerOptions, Option]
"""A layer, and what it becomes."""


def replacements(parts: Iterable[Part]) -> dict[str, Replacement]:
    """Return what parts put in the place of their layers, by key."""
    return {layer.key: layer.replacement(option) for layer, option in parts}


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
    max_options: int = MAX_OPTIONS,
    timed_for_each: float = TIMED_FOR_EACH,
) -> list[LayerOptions | str]:
    """Return for each layer its options, or why it has none; the same for any number of jobs.

    Args:
        subjects: The layers.
        fits: Ways to fit.
        jobs: Processes to factorize in.
        track: Shows progress over the layers.
        memory: Keeps what was found, for the next search of the same model on the same samples.
        max_options: Options of a layer at most.
        timed_for_each: Candidates that are timed for each that is fitted, at most.
    """
    guide = next((fit for fit in fits if fit.shrinkage == SHRUNK.shrinkage), fits[0])
    work = _work(subject.study.layer for subject in subjects)
    with Workers(jobs if work >= MIN_SHARED_MACS else 1) as workers:
        spreads = _spreads(subjects, guide, workers, track, memory)
        timed = [
            candidates
            if isinstance(candidates, str)
            else _timed(subject, subject.key(guide), candidates, max_options, timed_for_each)
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


def _work(layers: Iterable[Layer]) -> int:
    """Return the multiply-accumulates of laying every weight on the moment of its input."""
    return sum(layer.n_params * patch_size(layer) for layer in layers)


def _timed(
    subject: Subject,
    key: Mapping[str, object],
    candidates: list[Candidate],
    max_options: int,
    timed_for_each: float,
) -> Timed | str:
    """Return the candidates that are faster than the layer and that none beats in time and error."""
    study = subject.study
    if study.measure is None:
        return "nothing can be timed"
    n_kept = _n_kept(study.layer, max_options)
    candidates = _thinned(candidates, int(timed_for_each * n_kept))
    try:
        timings = study.measure(study.layer, candidates)
    except ModelError as error:  # onnxruntime cannot run this layer alone
        return f"it cannot be timed: {error}"
    faster = [(c, m) for c, m in zip(candidates, timings, strict=True) if m.speedup_low > 1.0]
    faster.sort(key=lambda pair: (pair[1].chain_ms / pair[1].dense_ms, pair[0].error))
    kept: list[tuple[Candidate, Measured]] = []
    least = {True: float("inf"), False: float("inf")}  # by kind, as in `fitting.SLACK`
    for candidate, timing in faster:
        if candidate.error < least[candidate.method.nested]:
            kept.append((candidate, timing))
            least[candidate.method.nested] = candidate.error
    if not kept:
        return f"not faster: none of {len(candidates)} chains that were timed beats the layer"
    return Timed(subject, key, candidates, _thinned(kept, n_kept)[::-1])


def _n_kept(layer: Layer, max_options: int) -> int:
    """Return how many candidates of a layer are worth fitting."""
    affordable = min(int(MAX_FITTED_MACS / _work([layer])), max_options)
    return max(MIN_FITTED, (3 * max_options) // 4, affordable)


def _thinned(found: list[T], n_kept: int) -> list[T]:
    """Return so many at most, evenly spread, both ends among them."""
    if len(found) <= n_kept:
        return found
    return [found[round(index * (len(found) - 1) / (n_kept - 1))] for index in range(n_kept)]


class Way:
    """One way to fit a layer: makes chains, and knows the errors of those that were made before.

    Args:
        timed: The layer.
        fit: The way.
        fitter: Makes single chains.
        memory: Keeps the errors for the next search.
    """

    def __init__(self, timed: Timed, fit: Fit, fitter: Fitter, memory: Memory | None) -> None:
        self._timed, self._fit, self._fitter, self._memory = timed, fit, fitter, memory
        self._key = {**timed.key, "fit": asdict(fit)}
        self._errors = (memory.get(ERRORS, self._key) if memory else None) or {}
        self._made: dict[str, Fitted] = {}

    def options(self) -> list[Option]:
        """Return the options, cheapest last."""
        return [self._option(candidate, timing) for candidate, timing in self._timed.kept]

    def unknown(self, *, typical: bool) -> Task | None:
        """Return the work of all candidates whose error is not known, or of the typical one alone."""
        kept = self._timed.kept
        wanted = [kept[typical_of(len(kept))]] if typical else kept
        missing = [c for c, _ in wanted if name_of(c) not in self._errors]
        return self._task(missing) if missing else None

    def take(self, task: Task, made: Sequence[Fitted]) -> None:
        """Take what was made for a task."""
        for candidate, one in zip(task.candidates, made, strict=True):
            self._made[name_of(candidate)] = one
            self._errors[name_of(candidate)] = one.error
        if self._memory:
            self._memory.put(ERRORS, self._key, self._errors)

    def fitted(self, candidate: Candidate) -> Fitted:
        """Return the chain of a candidate, made now if it was not before."""
        if name_of(candidate) not in self._made:
            task = self._task([candidate])
            self.take(task, [alone(self._fitter.fitted, task)])
        return self._made[name_of(candidate)]

    def error(self, candidate: Candidate) -> float:
        """Return the error of a candidate on the data, for which its chain is made if it has to be."""
        known = self._errors.get(name_of(candidate))
        return self.fitted(candidate).error if known is None else float(known)

    def _option(self, candidate: Candidate, timing: Measured) -> Option:
        return Option(
            replace(candidate, measured=timing),
            self._fit,
            partial(self.fitted, candidate),
            partial(self.error, candidate),
            timing.chain_ms / timing.dense_ms,
            candidate.n_params * self._timed.subject.target.group.dtype.itemsize,
            canonical({**self._key, "candidate": name_of(candidate)}),
        )

    def _task(self, candidates: Sequence[Candidate]) -> Task:
        return self._timed.subject.task(self._fit, candidates, self._timed.spread)


def typical_of(n_options: int) -> int:
    """Return which of the options of a layer, the cheapest last, every fit is tried at."""
    return (2 * n_options) // 3


def complete(chosen: Sequence[tuple[LayerOptions, str]], jobs: int = 1, track: Track = untracked) -> None:
    """Make what is not known yet of the options of some layers in the fits that were chosen for them.

    Args:
        chosen: Layers, each with the name of its fit.
        jobs: Processes to factorize in.
        track: Shows progress over the layers.
    """
    work = _work(layer.target.group.layer for layer, _ in chosen)
    with Workers(jobs if work >= MIN_SHARED_MACS else 1) as workers:
        ways = [[layer.ways[fit]] for layer, fit in chosen if fit in layer.ways]
        _make(ways, workers, track, typical=False)


def _make(ways: Sequence[Sequence[Way]], workers: Workers, track: Track, *, typical: bool) -> None:
    """Make what is not known of the ways of each layer, layers side by side."""
    tasks = [[(way, task) for way in own if (task := way.unknown(typical=typical))] for own in ways]
    made = workers.map(fitted, [[task for _, task in own] for own in tasks if own])
    for own in track(tasks, "fitting"):
        for (way, task), found in zip(own, next(made) if own else [], strict=True):
            way.take(task, found)


def _fitted(
    timed: Sequence[Timed | str], fits: Sequence[Fit], workers: Workers, track: Track, memory: Memory | None
) -> list[LayerOptions | str]:
    """Return the options of each layer, or why it has none."""
    fitter = Fitter()
    ways = [
        {}
        if isinstance(one, str)
        else {f.name: Way(one, f, fitter, memory) for f in distinct_fits(fits, one.subject.study.layer)}
        for one in timed
    ]
    _make([list(own.values()) for own in ways], workers, track, typical=True)
    return [
        one
        if isinstance(one, str)
        else LayerOptions(
            one.subject.target,
            partial(getattr, one.subject.study, "weight"),
            {name: way.options() for name, way in own.items()},
            own,
        )
        for one, own in zip(timed, ways, strict=True)
    ]
