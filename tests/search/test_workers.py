"""Worker processes: the same results and the same errors as here, and none outlives its work."""

import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from operator import itemgetter
from time import monotonic, sleep

import numpy as np
import pytest

from onnxdecomp.errors import OnnxdecompError, UsageError, unknown_name
from onnxdecomp.search.workers import Workers

PATIENCE_S = 20.0
"""Longest wait for something that takes a fraction of a second on an idle machine."""

INTERRUPTED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from onnxdecomp.search.workers import Workers
with Workers(2) as workers:
    list(workers.map(time.sleep, [0]))
    print(*(process.pid for process in workers._processes), flush=True)
    list(workers.map(time.sleep, [300, 300, 300]))
"""
"""Has no guard against being run again in each worker: it would print more than one line."""


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as started:
        yield started


def test_one_job_stays_in_this_process():
    with Workers(1) as here:
        assert list(here.map(itemgetter(0), [[1], [2]])) == [1, 2]
        assert {pid for (pid,) in here.map(_pids, [1])} == {os.getpid()}


def test_no_process_is_started_for_nothing():
    with Workers(2) as ours:
        assert not list(ours.map(math.sqrt, []))
        assert not ours._processes


def test_results_come_in_order_from_other_processes(workers):
    assert list(workers.map(math.sqrt, [float(n * n) for n in range(20)])) == list(range(20))
    assert os.getpid() not in {pid for (pid,) in workers.map(_pids, range(4))}


def test_a_worker_makes_the_same_bits(workers):
    matrices = [np.random.default_rng(seed).standard_normal((90, 70)) for seed in range(3)]
    with Workers(1) as here:
        expected = list(here.map(np.linalg.pinv, matrices))
    np.testing.assert_array_equal(list(workers.map(np.linalg.pinv, matrices)), expected)


def test_what_a_task_prints_does_not_disturb_its_result(workers):
    assert list(workers.map(print, ["said by a worker, to standard error"])) == [None]


def test_an_error_is_raised_as_it_was_in_the_worker(workers):
    with pytest.raises(ValueError, match="math domain error"):
        list(workers.map(math.sqrt, [4.0, -1.0, 9.0]))
    with pytest.raises(UsageError, match="unknown method 'a'"):
        list(workers.map(_refuse, ["a"]))
    assert list(workers.map(math.sqrt, [4.0])) == [2.0]


def test_a_worker_that_is_lost_is_said():
    with Workers(2) as ours, pytest.raises(OnnxdecompError, match="ended before its task was done"):
        list(ours.map(os._exit, [3]))


def test_an_interrupt_ends_the_workers_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        try:
            first = script.stdout.readline().split()
            sleep(1.0)  # the tasks are under way
            os.killpg(script.pid, signal.SIGINT)
            rest, errors = script.communicate(timeout=PATIENCE_S)
        finally:
            script.kill()
    assert (len(first), rest) == (2, "")
    assert errors.count("Traceback") == 1, errors
    assert errors.strip().endswith("KeyboardInterrupt")
    assert not [pid for pid in map(int, first) if _lives(pid)]


def _pids(_):
    return (os.getpid(),)


def _refuse(name):
    raise unknown_name("method", name, ["svd"])


def _lives(pid):
    until = monotonic() + PATIENCE_S
    with suppress(ProcessLookupError):
        while monotonic() < until:
            os.kill(pid, 0)
            sleep(0.02)
        return True
    return False
