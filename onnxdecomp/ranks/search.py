"""Find the ranks of one method at a budget of weights or at an error, whatever the number of its ranks.

A method with spectra has one family of ranks with a single parameter: every cut loses the same share of
its energy. Along the family sizes grow and errors fall, so bisection finds both ends; single ranks are then
raised or lowered while the condition still holds. A method without spectra (CP) has one rank, found by
bisection, each error being a solve.
"""

from collections.abc import Callable
from itertools import pairwise

from onnxdecomp.methods.base import Analysis, Method, Ranks
from onnxdecomp.ranks.snap import snap_down, snap_up
from onnxdecomp.ranks.study import Candidate, Study

FAMILY_STEPS = 48
"""Bisection steps on the logarithm of the lost share: finer than one rank."""


ERROR_STEPS = 8
"""Lost shares tried between what surely is too much for each cut and what surely is not."""


def equal_loss_ranks(analysis: Analysis, share: float) -> Ranks:
    """Return for each rank the smallest value that loses at most `share` of the energy of its cut."""
    ranks = []
    for spectrum in analysis.spectra:
        low, high = 1, min(spectrum.shape)
        while low < high:
            middle = (low + high) // 2
            if spectrum.tail(middle) <= share * spectrum.energy:
                high = middle
            else:
                low = middle + 1
        ranks.append(low)
    return tuple(ranks)


def within_budget(study: Study, method: Method, fits: Callable[[Candidate], bool]) -> Candidate | None:
    """Return the most accurate aligned candidate of a method that `fits`, or None.

    Args:
        study: The layer.
        method: The method.
        fits: A condition on size that holds for all smaller ranks when it holds for some ranks.
    """
    bounds = method.rank_bounds(study.layer)

    def fitting(ranks: Ranks) -> bool:
        return fits(study.planned(method, ranks))

    ranks: Ranks
    if len(bounds) == 1:
        rank = _largest(bounds[0], lambda r: fitting((r,)))
        if rank == 0:
            return None
        ranks = (snap_down(rank, study.block),)
        if not study.worth_solving(method, ranks):
            return None
        return study.candidate(method, ranks, max_ranks=ranks)

    analysis = study.analysis(method)
    ranks = (1,) * len(bounds)
    if not fitting(ranks):
        return None
    low, high = -30.0, 0.0  # log2 of the lost share
    for _ in range(FAMILY_STEPS):
        middle = (low + high) / 2
        trial = _snapped_down(equal_loss_ranks(analysis, 2.0**middle), study.block)
        if fitting(trial):
            ranks, high = trial, middle
        else:
            low = middle
    return study.candidate(method, _raised(study, method, ranks, fitting))


def within_error(study: Study, method: Method, max_error: float) -> Candidate | None:
    """Return the smallest aligned candidate of a method whose weight error is at most `max_error`, or None.

    None also when only ranks at which the chain no longer shrinks the layer would do.
    """
    bounds = method.rank_bounds(study.layer)
    if len(bounds) == 1:
        return _within_error_one_rank(study, method, max_error)
    analysis = study.analysis(method)
    share = max_error**2
    # Each of n cuts may lose share/n and the bound holds; losing share each usually is too much.
    least = share / len(bounds)
    shares = [*(least + (share - least) / 2**halvings for halvings in range(ERROR_STEPS)), least]
    families = (_snapped_up(equal_loss_ranks(analysis, lost), bounds, study.block) for lost in shares)
    best = next((ranks for ranks in families if analysis.error(ranks) <= max_error), None)
    if best is None:
        return None
    best = _lowered(study, analysis, best, max_error)
    candidate = study.candidate(method, best)
    return candidate if study.shrinks(candidate) else None


def _within_error_one_rank(study: Study, method: Method, max_error: float) -> Candidate | None:
    (bound,) = method.rank_bounds(study.layer)
    useful = snap_down(_largest(bound, lambda r: study.shrinks(study.planned(method, (r,)))), study.block)
    if useful == 0 or not study.worth_solving(method, (useful,)):
        return None
    steps = sorted({snap_up(r, useful, study.block) for r in range(1, useful + 1)})
    analysis = study.analysis(method, max_ranks=(useful,))
    if analysis.error((useful,)) > max_error:
        return None
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if analysis.error((steps[middle],)) <= max_error:
            high = middle
        else:
            low = middle + 1
    return study.candidate(method, (steps[low],), max_ranks=(useful,))


def _largest(bound: int, holds: Callable[[int], bool]) -> int:
    """Return the largest rank in 1..bound for which a condition that only fails upwards holds; else 0."""
    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _snapped_down(ranks: Ranks, block: int) -> Ranks:
    return tuple(snap_down(rank, block) for rank in ranks)


def _snapped_up(ranks: Ranks, bounds: Ranks, block: int) -> Ranks:
    return tuple(snap_up(rank, bound, block) for rank, bound in zip(ranks, bounds, strict=True))


def _raised(study: Study, method: Method, ranks: Ranks, fitting: Callable[[Ranks], bool]) -> Ranks:
    """Raise single ranks by one block each while the chain still fits, the one that helps most first."""
    bounds = method.rank_bounds(study.layer)
    analysis = study.analysis(method)
    while True:
        raised = [
            (*ranks[:i], snap_up(ranks[i] + 1, bounds[i], study.block), *ranks[i + 1 :])
            for i in range(len(ranks))
        ]
        better = [(analysis.error(r), r) for r in raised if r != ranks and fitting(r)]
        if not better or min(better)[0] >= analysis.error(ranks):
            return ranks
        ranks = min(better)[1]


def _lowered(study: Study, analysis: Analysis, ranks: Ranks, max_error: float) -> Ranks:
    """Lower single ranks by one block each while the error allows."""
    for index in range(len(ranks)):
        steps = sorted(
            {snap_up(r, ranks[index], study.block) for r in range(1, ranks[index] + 1)}, reverse=True
        )
        for _, lower in pairwise(steps):
            trial = (*ranks[:index], lower, *ranks[index + 1 :])
            if analysis.error(trial) > max_error:
                break
            ranks = trial
    return ranks
