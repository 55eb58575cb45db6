"""Let somebody see how far the work is.

What is tracked without a length has an end that is not known.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from onnxdecomp.runtime.activations import Track
from onnxdecomp.search.trial import Trials

__all__ = ["Track", "untracked", "watched"]


def untracked(items: Iterable[Any], _: str) -> Iterable[Any]:
    """Return the items: nobody looks."""
    return items


@contextmanager
def watched(trials: Trials, track: Track, what: str) -> Iterator[None]:
    """Show how many models were evaluated while this lasts; how many there will be is not known."""
    steps = _steps(track(itertools.count(), what))
    next(steps)
    trials.watch = lambda: next(steps)
    try:
        yield
    finally:
        trials.watch = None
        steps.close()


def _steps(items: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield the items; closing this closes what shows them."""
    yield from items
