"""What each layer may become: methods and ranks over a range of costs, fitted to data and timed.

For every method one aligned candidate per share of the layer's MACs; those that another one beats in both
time and estimated error go. The rest are fitted in each way of `weights.fit`, with their exact error on the
data.

Layers are factorized side by side before and after all of them are timed, one after the other: nothing else
runs while the clock does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxdecomp.errors import ModelError
from onnxdecomp.methods.base import Chain, FloatArray
from onnxdecomp.ranks.study import Candidate, Measured, Study
from onnxdecomp.search.fitting import Fitted, Task, fitted, spread
from onnxdecomp.search.replacement import Replacement
from onnxdecomp.search.track import Track, untracked
from onnxdecomp.search.workers import Workers
from onnxdecomp.selection import Target
from onnxdecomp.weights.fit import FITS, SHRUNK, Fit
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.refit import patch_size

MIN_SHARED_MACS = 50_000_000
"""Less work than this takes no longer than starting workers: multiply-accumulates of all weights, each laid
on the moment of its input once. Counted and not timed, since it must not change anything but the time."""


@dataclass(frozen=True)
class Option:
    """One chain for one layer.

    Args:
        candidate: Method, ranks and what they cost; its error is the one on the data.
        fit: How it was fitted.
        chain: The chain.
        bias: ``(O,)`` with the mean of what is lost; None keeps the layer's.
        ratio: Time of the chain over that of the layer, alone in onnxruntime.
        size_bytes: What its weights take in the file.
    """

    candidate: Candidate
    fit: Fit
    chain: Chain
    bias: FloatArray | None
    ratio: float
    size_bytes: int

    @property
    def error(self) -> float:
        """Relative error of the layer's output on the data."""
        return self.candidate.error


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
        return Replacement(self.target.group, option.chain, option.bias)


@dataclass(frozen=True)
class Subject:
    """A layer whose options are wanted.

    Args:
        target: The layer.
        study: It under study, without data.
        moments: Of its input.
        bias: What it adds to every output, ``(O,)``; None when that cannot be changed.
    """

    target: Target
    study: Study
    moments: Moments
    bias: FloatArray | None

    def task(self, fit: Fit, candidates: Sequence[Candidate] = ()) -> Task:
        """Return the work of a fit, as plain data."""
        return Task(replace(self.study, measure=None), self.moments, self.bias, fit, candidates)


def find_options(
    subjects: Sequence[Subject],
    fits: Sequence[Fit] = FITS,
    *,
    jobs: int = 1,
    track: Track = untracked,
) -> list[LayerOptions | str]:
    """Return for each layer its options, or why it has none; the same for any number of jobs.

    Args:
        subjects: The layers.
        fits: Ways to fit.
        jobs: Processes to factorize in.
        track: Shows progress over the layers.
    """
    guide = next((fit for fit in fits if fit.shrinkage == SHRUNK.shrinkage), fits[0])
    with Workers(jobs if _work(subjects) >= MIN_SHARED_MACS else 1) as workers:
        found = workers.map(spread, [subject.task(guide) for subject in subjects])
        spreads = [candidates for _, candidates in zip(track(subjects, "factorizing"), found, strict=True)]
        timed = [
            candidates if isinstance(candidates, str) else _timed(subject.study, candidates)
            for subject, candidates in zip(track(subjects, "timing"), spreads, strict=True)
        ]
        tasks = [
            subject.task(fit, [candidate for candidate, _ in kept])
            for subject, kept in zip(subjects, timed, strict=True)
            if not isinstance(kept, str)
            for fit in fits
        ]
        made = workers.map(fitted, tasks)
        return [
            kept if isinstance(kept, str) else _options(subject, kept, {fit: next(made) for fit in fits})
            for subject, kept in zip(track(subjects, "fitting"), timed, strict=True)
        ]


def _work(subjects: Iterable[Subject]) -> int:
    """Return the multiply-accumulates of laying every weight on the moment of its input."""
    return sum(s.study.layer.n_params * patch_size(s.study.layer) for s in subjects)


def _timed(study: Study, candidates: list[Candidate]) -> list[tuple[Candidate, Measured]] | str:
    """Return the candidates that are faster than the layer and that none beats in time and error."""
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
    return kept[::-1] or f"not faster: none of {len(candidates)} chains that were timed beats the layer"


def _options(
    subject: Subject, timed: list[tuple[Candidate, Measured]], made: Mapping[Fit, list[Fitted]]
) -> LayerOptions:
    itemsize = subject.target.group.dtype.itemsize
    options = {
        fit.name: [
            Option(
                replace(candidate, error=one.error, measured=timing),
                fit,
                one.chain,
                one.bias,
                timing.chain_ms / timing.dense_ms,
                candidate.n_params * itemsize,
            )
            for (candidate, timing), one in zip(timed, chains, strict=True)
        ]
        for fit, chains in made.items()
    }
    return LayerOptions(subject.target, subject.study.weight, options)
