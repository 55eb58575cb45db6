"""Measure whole models against each other: latency, load time, size, multiplications, memory.

As a script, ``python -m onnxdecomp.runtime.measure MODEL THREADS`` with pickled inputs on standard input, it
loads and runs one model in a process of its own and prints load time and memory as JSON. `run_alone` starts
it.
"""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter

import onnx

from onnxdecomp.errors import ModelError, OnnxdecompError, UsageError
from onnxdecomp.graph.container import packed_bytes
from onnxdecomp.graph.expand import dense_bytes
from onnxdecomp.graph.external import all_tensors
from onnxdecomp.graph.io import load
from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.feeds import Shapes, input_specs, runnable_feeds
from onnxdecomp.runtime.latency import Speedup, paired_speedup, time_interleaved
from onnxdecomp.runtime.machine import peak_memory_bytes
from onnxdecomp.runtime.observe import NodeRun, observe
from onnxdecomp.runtime.session import Feeds, first_sentence, open_session, run

RUNS_ALONE = 2
"""Runs in the process that measures memory: the second reuses what the first allocated."""

NO_PARAMETERS = {
    onnx.TensorProto.INT64,
    onnx.TensorProto.INT32,
    onnx.TensorProto.BOOL,
    onnx.TensorProto.STRING,
}
"""Element types of shapes, indices and masks."""


SECOND_OPERAND = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
}
"""Operators whose multiplications are counted, and the position of their weight or right operand."""


@dataclass(frozen=True)
class Alone:
    """What loading and running a model in a fresh process has shown.

    Args:
        load_ms: Time until it is ready to run.
        peak_memory_bytes: Resident memory at most.
    """

    load_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class BenchRow:
    """What was measured of one model.

    Args:
        file: Its path.
        size_bytes: Size of the file and its external data.
        dense_bytes: The same with dense weights in place of codebooks.
        packed_bytes: Size of the packed file that `onnxdecomp pack` would write.
        n_params: Elements of its constants, without shapes, indices and masks.
        n_macs: Multiply-accumulates of its convolutions and matrix products in one run; None when the
            model could not be watched.
        load_ms: Time until it is ready to run, in a fresh process.
        latency_ms: Median time of a run.
        latency_spread_ms: Half the interquartile range.
        n_runs: Runs behind the median.
        speedup: How many times faster than the first model, paired; None for the first.
        peak_memory_bytes: Resident memory of a fresh process that loads and runs it.
    """

    file: str
    size_bytes: int
    dense_bytes: int
    packed_bytes: int
    n_params: int
    n_macs: int | None
    load_ms: float
    latency_ms: float
    latency_spread_ms: float
    n_runs: int
    speedup: Speedup | None
    peak_memory_bytes: int

    @property
    def verdict(self) -> str:
        """What may be said of the speed: ``faster``, ``slower``, ``no difference beyond the noise``."""
        if self.speedup is None:
            return "reference"
        if self.speedup.is_faster:
            return "faster"
        return "slower" if self.speedup.is_slower else "no difference beyond the noise"


def bench(
    paths: Sequence[str | Path],
    *,
    feeds: Feeds | None = None,
    shapes: Shapes | None = None,
    threads: int = 1,
    seed: int = 0,
    n_runs: int = 30,
    max_seconds: float = 300.0,
) -> list[BenchRow]:
    """Measure models, the first being what the others are compared with.

    Latencies are taken interleaved in this process; load time and memory in a fresh one per model.

    Args:
        paths: The models.
        feeds: Inputs for all models; None for seeded ones of a size that runs.
        shapes: Shapes of inputs by name, for seeded inputs.
        threads: Threads inside an operator.
        seed: Seed of the inputs.
        n_runs: Runs of each model.
        max_seconds: As in `time_interleaved`.

    Returns:
        One row per path, in order.

    Raises:
        ModelError: A model cannot be read, loaded or run.
        UsageError: No inputs can be made for a model.
    """
    files = [Path(path) for path in paths]
    inputs = _inputs(files, feeds, shapes, seed)
    alone = [run_alone(file, given, threads) for file, given in zip(files, inputs, strict=True)]
    calls = {
        str(number): _call(file, given, threads)
        for number, (file, given) in enumerate(zip(files, inputs, strict=True))
    }
    timings = list(time_interleaved(calls, n_runs=n_runs, max_seconds=max_seconds).values())
    rows = []
    for number, (file, given, timing) in enumerate(zip(files, inputs, timings, strict=True)):
        model = load(file)
        rows.append(
            BenchRow(
                file=str(file),
                size_bytes=model.size_bytes,
                dense_bytes=dense_bytes(model),
                packed_bytes=packed_bytes(model),
                n_params=count_params(model.proto),
                n_macs=_macs_of(file, given),
                load_ms=alone[number].load_ms,
                latency_ms=timing.median_ms,
                latency_spread_ms=timing.spread_ms,
                n_runs=timing.n_runs,
                speedup=paired_speedup(timings[0].samples_ms, timing.samples_ms) if number else None,
                peak_memory_bytes=alone[number].peak_memory_bytes,
            )
        )
    return rows


def count_params(model: onnx.ModelProto) -> int:
    """Return the number of elements of a model's constants, without shapes, indices and masks."""
    return sum(prod(t.dims) for t in all_tensors(model) if t.data_type not in NO_PARAMETERS)


def count_macs(model: onnx.ModelProto, runs: Mapping[str, NodeRun]) -> int:
    """Return the multiply-accumulates of the convolutions and matrix products that ran.

    Args:
        model: The model.
        runs: What `observe` saw.
    """
    places = [place for place in walk(model.graph) if place.key in runs]
    return sum(_node_macs(place.node.op_type, runs[place.key]) for place in places)


def _node_macs(op_type: str, seen: NodeRun) -> int:
    if op_type not in SECOND_OPERAND or len(seen.in_shapes) <= SECOND_OPERAND[op_type]:
        return 0
    left, right, out = seen.in_shapes[0], seen.in_shapes[SECOND_OPERAND[op_type]], seen.out_shapes[0]
    if left is None or right is None or out is None:
        return 0
    match op_type:
        case "ConvTranspose":
            once = prod(left) * prod(right[1:])
        case "Gemm":
            once = prod(left) * out[-1]
        case "MatMul" | "MatMulInteger" | "QLinearMatMul":
            once = prod(out) * left[-1]
        case _:
            once = prod(out) * prod(right[1:])
    return once * seen.n_calls


def _inputs(files: Sequence[Path], feeds: Feeds | None, shapes: Shapes | None, seed: int) -> list[Feeds]:
    """Return the inputs of each model: the first one's for all that take the same names."""
    chosen: list[Feeds] = []
    for file in files:
        names = input_specs(load(file).proto).keys()
        shared = feeds if feeds is not None else (chosen[0] if chosen else None)
        if shared is not None and names == shared.keys():
            chosen.append(shared)
        elif feeds is not None:
            raise UsageError(f"{file} takes {', '.join(names)} and the inputs given are {', '.join(feeds)}.")
        else:
            own = {name: shape for name, shape in (shapes or {}).items() if name in names}
            chosen.append(runnable_feeds(file, seed, own if chosen else shapes))
    return chosen


def _call(file: Path, feeds: Feeds, threads: int) -> Callable[[], object]:
    session = open_session(file, threads=threads)
    return lambda: run(session, feeds)


def _macs_of(file: Path, feeds: Feeds) -> int | None:
    try:
        return count_macs(load(file).proto, observe(file, feeds))
    except ModelError:
        return None


def run_alone(file: Path, feeds: Feeds, threads: int) -> Alone:
    """Load and run a model in a fresh process.

    Raises:
        ModelError: It cannot be loaded or run.
    """
    command = [sys.executable, "-m", "onnxdecomp.runtime.measure", str(file), str(threads)]
    done = subprocess.run(command, input=pickle.dumps(dict(feeds)), capture_output=True, check=False)
    if done.returncode:
        complaint = ModelError(done.stderr.decode(errors="replace") or f"exit code {done.returncode}")
        raise ModelError(f"{file} cannot be measured alone: {first_sentence(complaint)}")
    return Alone(**json.loads(done.stdout))


def main(model: str, threads: str) -> int:
    """Load and run one model in this process and print what `run_alone` wants to know."""
    feeds = pickle.loads(sys.stdin.buffer.read())  # written by the process that started this one
    start = perf_counter()
    try:
        session = open_session(Path(model), threads=int(threads))
        load_ms = (perf_counter() - start) * 1e3
        for _ in range(RUNS_ALONE):
            run(session, feeds)
    except OnnxdecompError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps({"load_ms": load_ms, "peak_memory_bytes": peak_memory_bytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
