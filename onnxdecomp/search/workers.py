"""Factorize in several processes, each with one BLAS thread, so that the bits do not depend on their number.

BLAS adds up in another order with other numbers of threads. So every task has one, here or in a worker.

A worker is a Python of its own that reads tasks from its standard input and ends with it. It does not run
the program's main module again, as `multiprocessing` would: a script that calls `convert` needs no guard.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from traceback import format_exception
from typing import Any, BinaryIO, Self, TypeVar

from threadpoolctl import threadpool_limits

from onnxdecomp.errors import OnnxdecompError

A = TypeVar("A")
B = TypeVar("B")

START = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = json.loads(sys.argv[1]); from onnxdecomp.search.workers import serve; serve()"
)
"""What a worker runs. It leaves Ctrl-C to the process that started it."""


def alone(function: Callable[[A], B], item: A) -> B:
    """Return ``function(item)``, worked out with one BLAS thread."""
    with threadpool_limits(1, "blas"):
        return function(item)


class Workers:
    """Runs functions of modules on items, in worker processes or, with one job, in this one.

    Between two calls of `map` that were read to their end no worker does anything. The first item starts
    them.

    Args:
        jobs: Number of processes; 1 for none beside this one.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)  # their threads read the end of what was killed
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                _close(pipe)

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
        """Yield ``function(item)`` of every item, in order; its errors are raised here as they were there."""
        if self._jobs == 1 or not items:
            return map(partial(alone, function), items)
        if not self._processes:
            self._processes = [_started() for _ in range(self._jobs)]
            for process in self._processes:
                self._idle.put(process)
        return self._threads.map(partial(self._asked, function), items)

    def _asked(self, function: Callable[[A], B], item: A) -> B:
        """Let an idle worker work an item out."""
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, (function, item))
            result, error = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as lost:
            raise OnnxdecompError(
                f"a worker process ended before its task was done (code {process.poll()}), perhaps for want "
                "of memory: give --jobs 1."
            ) from lost
        finally:
            self._idle.put(process)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def serve() -> None:
    """Work tasks out from standard input until it ends. What is printed goes to standard error."""
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, item = pickle.load(tasks)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = alone(function, item), None
        except Exception as error:  # noqa: BLE001
            error.add_note("".join(format_exception(error)))
            answer = None, error
        _send(results, answer)


def _started() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", START, json.dumps([str(path) for path in sys.path])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _send(pipe: Any, value: object) -> None:
    pickle.dump(value, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _close(pipe: BinaryIO | Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was not written yet has nobody to read it
        return
