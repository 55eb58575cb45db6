"""Work through items in threads, a few at a time, and hand the results out in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(function: Callable[[A], B], items: Iterable[A], jobs: int) -> Iterator[B]:
    """Yield ``function(item)`` of every item, in order, worked out by `jobs` threads.

    Items are taken from their source, and results kept, at most `jobs` ahead of what was yielded. The first
    error in the order of the items is raised, as a plain loop would. One job is a plain loop.
    """
    if jobs == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
