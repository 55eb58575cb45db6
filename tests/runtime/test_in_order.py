"""Threads change how long work takes, not what comes out of it."""

from threading import Barrier
from time import sleep

import pytest

from onnxdecomp.runtime.in_order import in_order


def slower_first(item):
    sleep(0.02 / (1 + item))
    return item * item


@pytest.mark.parametrize("jobs", [1, 2, 3, 20])
def test_results_come_in_the_order_of_the_items(jobs):
    assert list(in_order(slower_first, range(8), jobs)) == [n * n for n in range(8)]


def test_as_many_run_side_by_side_as_there_are_jobs():
    together = Barrier(3, timeout=10)
    assert len({place % 3 for place in in_order(lambda _: together.wait(), range(6), 3)}) == 3


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_items_are_taken_only_as_far_ahead_as_there_are_jobs(jobs):
    taken = []
    results = in_order(abs, (taken.append(n) or n for n in range(20)), jobs)
    ahead = [len(taken) - seen for seen, _ in enumerate(results, start=1)]
    assert max(ahead) <= jobs


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_first_error_in_order_is_raised_after_the_results_before_it(jobs):
    def work(n):
        if n in (2, 3):
            sleep(0.02 if n == 2 else 0)
            raise ValueError(n)
        return n

    results = in_order(work, range(6), jobs)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_of_the_source_is_raised(jobs):
    def source():
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(in_order(abs, source(), jobs))
