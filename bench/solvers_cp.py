"""CP solvers on trained convolution weights, against tensorly and against each other.

    python -m bench.solvers_cp --weights MODEL.onnx [--threads 2] [--repeats 3] [--cpu-time] [-o FILE.json]

Prints two tables and writes them as JSON:

* Gauss-Newton ("nls") against 50 sweeps of tensorly's `parafac` from a random start, rank 200, on one
  512x512x3x3 weight as a 3-way and as a 4-way tensor: time and error of both, and the time after which nls
  has parafac's error.
* nls against als against greedy at equal rank: error, time, sensitivity of the unit-norm tensor, and the norm
  of the largest component over that of the tensor.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import TypeVar

import numpy as np
import onnx
import tensorly
from numpy.typing import NDArray
from onnx import numpy_helper
from tensorly.decomposition import parafac

from onnxdecomp.methods.base import relative_error
from onnxdecomp.methods.solvers.cp_method import SOLVERS
from onnxdecomp.methods.solvers.cp_nls import solve_nls
from onnxdecomp.methods.solvers.cp_tensor import CpFit, component_norms, sensitivity
from onnxdecomp.runtime.machine import environment

RANK, SWEEPS, SEED = 200, 50, 0
Result = TypeVar("Result")
TABLE_RANKS = (50, 100, 200)
TABLE_SHAPES = ((128, 128, 3, 3), (256, 256, 3, 3), (512, 512, 3, 3))


class Stopwatch:
    """Times runs by the wall clock, or by the processor time of this program."""

    def __init__(self, cpu_time: bool) -> None:
        self.clock = process_time if cpu_time else perf_counter

    def __call__(self, run: Callable[[], Result], repeats: int = 1) -> tuple[Result, list[float]]:
        """Return the last result and the seconds of each run."""
        seconds = []
        for _ in range(repeats):
            start = self.clock()
            result = run()
            seconds.append(self.clock() - start)
        return result, seconds


def first_weight(model: onnx.ModelProto, shape: tuple[int, ...]) -> tuple[str, NDArray[np.floating]]:
    """Return name and array of the first initializer of this shape."""
    for initializer in model.graph.initializer:
        if tuple(initializer.dims) == shape:
            return initializer.name, numpy_helper.to_array(initializer)
    raise SystemExit(f"The model has no weight of shape {shape}: choose another one with --weights.")


def against_tensorly(
    timed: Stopwatch, name: str, tensor: NDArray[np.floating], repeats: int
) -> dict[str, object]:
    """Time parafac and nls on one tensor."""

    def theirs() -> object:
        return parafac(tensor, RANK, n_iter_max=SWEEPS, tol=0, init="random", random_state=SEED)

    cp, parafac_s = timed(theirs)
    parafac_error = relative_error(tensor, tensorly.cp_to_tensor(cp))
    reached, reach_s = timed(
        lambda: solve_nls(tensor, RANK, np.random.default_rng(SEED), enough=parafac_error), repeats
    )
    whole, whole_s = timed(lambda: solve_nls(tensor, RANK, np.random.default_rng(SEED)), repeats)
    row = {
        "weight": name,
        "shape": list(tensor.shape),
        "rank": RANK,
        "parafac_s": parafac_s,
        "parafac_error": parafac_error,
        "nls_until_parafac_error_s": reach_s,
        "nls_until_parafac_error": reached.rel_error,
        "nls_s": whole_s,
        "nls_error": whole.rel_error,
    }
    print(
        f"{'x'.join(map(str, tensor.shape)):>14} parafac {parafac_s[0]:6.2f} s {parafac_error:.4f}"
        f" | nls to that error {statistics.median(reach_s):5.2f} s {reached.rel_error:.4f}"
        f" ({parafac_s[0] / statistics.median(reach_s):.1f}x)"
        f" | nls whole {statistics.median(whole_s):5.2f} s {whole.rel_error:.4f}",
        flush=True,
    )
    return row


def measures(tensor: NDArray[np.floating], fit: CpFit) -> dict[str, float]:
    """Return sensitivity and largest component of the factors of the tensor scaled to unit norm."""
    norm = float(np.linalg.norm(tensor))
    unit = [u / norm ** (1 / tensor.ndim) for u in fit.factors]
    return {"sensitivity": sensitivity(unit), "largest_component": float(np.max(component_norms(unit)))}


def table(timed: Stopwatch, name: str, tensor: NDArray[np.floating]) -> list[dict[str, object]]:
    """Run each solver at each rank once."""
    rows: list[dict[str, object]] = []
    for rank in TABLE_RANKS:
        for solver in SOLVERS:
            fit, seconds = timed(lambda s=solver, r=rank: s.solve(tensor, r, np.random.default_rng(SEED)))
            found = measures(tensor, fit)
            shape = "x".join(map(str, tensor.shape))
            print(
                f"{shape:>14} R={rank:<4} {solver.variant:<7} error {fit.rel_error:.4f}  {seconds[0]:6.2f} s"
                f"  sensitivity {found['sensitivity']:10.0f}  largest {found['largest_component']:.2f}",
                flush=True,
            )
            rows.append(
                {
                    "weight": name,
                    "shape": list(tensor.shape),
                    "rank": rank,
                    "solver": solver.variant,
                    "error": fit.rel_error,
                    "time_s": seconds[0],
                    **found,
                }
            )
    return rows


def blas_environment(threads: int) -> None:
    """Start this program anew unless OpenBLAS, which reads it once, has these threads and a free choice."""
    wanted = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    wanted["OPENBLAS_NUM_THREADS"] = str(threads)
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="model with 512x512x3x3 convolutions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of nls against one of parafac")
    parser.add_argument(
        "--cpu-time", action="store_true", help="with --threads 1: processor time, for a busy machine"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/solvers_cp.json"))
    arguments = parser.parse_args()
    blas_environment(arguments.threads)
    timed = Stopwatch(arguments.cpu_time)
    model = onnx.load(arguments.weights)
    name, weight = first_weight(model, (512, 512, 3, 3))
    merged = weight.reshape(512, 512, 9)
    comparison = [against_tensorly(timed, name, tensor, arguments.repeats) for tensor in (merged, weight)]
    rows = []
    for shape in TABLE_SHAPES:
        name, weight = first_weight(model, shape)
        rows += table(timed, name, weight.reshape(*shape[:2], -1))
    result = {
        "environment": environment(arguments.threads) | {"tensorly": tensorly.__version__},
        "weights": arguments.weights.name,
        "clock": "processor time" if arguments.cpu_time else "wall",
        "against_tensorly": comparison,
        "solvers": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
