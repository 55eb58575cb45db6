"""SVD and Tucker-2 solvers against tensorly and LAPACK: time, error and peak memory.

    python -m bench.solvers_svd [--threads 2] [--repeats 5] [-o bench/results/solvers_svd.json]

Each case runs in a process of its own, so that peak memory is its own, on the generated weight of its shape:
smoothly decaying singular values in the channel modes, and 5 % of noise. Seconds cover everything from the
weight ``(O, I, *K)`` to the float64 factors. Peak memory includes the weight and the libraries (`baseline`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import Geometry, Layer, OpType
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import Ranks, decompose, recompose
from onnxdecomp.runtime.machine import environment, peak_memory_bytes

RESULT = Path(__file__).parent / "results" / "solvers_svd.json"
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
NOISE = 0.05
MAX_DECAY_SIDE = 4096
"""Longer sides of a weight are left as they are: to rotate them would take longer than the solvers do."""

Weight = NDArray[np.float32]


def made_weight(shape: tuple[int, ...], seed: int = 0) -> Weight:
    """Return a float32 weight ``(O, I, *K)`` of norm one for each entry on average."""
    rng = np.random.default_rng(seed)
    taps = rng.standard_normal((int(np.prod(shape[2:])), *shape[:2]), dtype=np.float32)  # (D, O, I)
    for axis in (1, 2):
        size = taps.shape[axis]
        if size > MAX_DECAY_SIDE:
            continue
        decay = np.exp(-np.arange(size) / (0.4 * size)).astype(np.float32)
        basis = np.linalg.qr(rng.standard_normal((size, size), dtype=np.float32))[0] * decay
        taps = basis @ taps if axis == 1 else taps @ basis.T
    taps /= np.sqrt(np.mean(np.square(taps), dtype=np.float64)).astype(np.float32)
    taps += NOISE * rng.standard_normal(taps.shape, dtype=np.float32)
    return np.ascontiguousarray(taps.transpose(1, 2, 0)).reshape(shape)


def ours(name: str, weight: Weight, ranks: Ranks) -> Callable[[], Callable[[], Weight]]:
    """Return a run of one of our methods; what it returns multiplies its factors out."""
    kind: OpType = "Conv" if weight.ndim > 2 else "Gemm"
    geometry = Geometry.pointwise(weight.ndim - 2)
    layer = Layer("layer", kind, weight.shape, geometry)
    (method,) = find_methods(name)

    def run() -> Callable[[], Weight]:
        analysis = method.analyze(layer, weight, np.random.default_rng(0), ranks)
        chain = decompose(method, analysis, layer, ranks)
        factors = [np.asarray(w, np.float32) for w in chain.weights]
        if weight.ndim == 2:
            return lambda: factors[1] @ factors[0]
        return lambda: np.asarray(recompose(chain.specs, factors, 1), np.float32)

    return run


def tensorly_tucker2(weight: Weight, ranks: Ranks) -> Callable[[], Callable[[], Weight]]:
    """Return a run of tensorly's `partial_tucker` with its own defaults."""
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    def run() -> Callable[[], Weight]:
        (core, factors), _ = partial_tucker(weight, rank=list(ranks), modes=[0, 1])
        return lambda: multi_mode_dot(core, factors, modes=[0, 1])

    return run


def least_error(weight: Weight, rank: int) -> float:
    """Return the least relative error of any matrix of this rank, by the whole spectrum in float64."""
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    gram = np.zeros((len(wide), len(wide)))
    for start in range(0, wide.shape[1], 4096):
        block = wide[:, start : start + 4096].astype(np.float64)
        gram += block @ block.T
    values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    return float(np.sqrt(values[rank:].sum() / values.sum()))


CASES: dict[str, tuple[str, tuple[int, ...], Ranks]] = {
    "tucker2 512x512x3x3": ("ours", (512, 512, 3, 3), (205, 205)),
    "tucker2 512x512x3x3, tensorly": ("tensorly", (512, 512, 3, 3), (205, 205)),
    "tucker2 2048x2048x3x3": ("ours", (2048, 2048, 3, 3), (819, 819)),
    "svd 25088x4096": ("ours", (25088, 4096), (512,)),
}
"""Who solves which weight at which ranks."""


def measure(case: str, weight_file: Path, repeats: int) -> dict[str, object]:
    """Run one case in this process and return its numbers."""
    who, shape, ranks = CASES[case]
    weight = np.load(weight_file)  # made elsewhere: that takes more memory than to solve it
    baseline = peak_memory_bytes()
    name = "svd" if len(shape) == 2 else "tucker2"
    run = ours(name, weight, ranks) if who == "ours" else tensorly_tucker2(weight, ranks)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        product = run()
        seconds.append(perf_counter() - start)
    peak = peak_memory_bytes()
    difference = product()
    difference -= weight
    norm = float(np.linalg.norm(weight.astype(np.float64)))
    found: dict[str, object] = {
        "ranks": ranks,
        "seconds_median": statistics.median(seconds),
        "seconds": seconds,
        "rel_error": float(np.linalg.norm(difference.astype(np.float64))) / norm,
        "peak_memory_bytes": peak,
        "baseline_memory_bytes": baseline,
        "weight_bytes": weight.nbytes,
    }
    if len(shape) == 2:
        found["least_rel_error"] = least_error(weight, ranks[0])
    return found


def in_a_process(case: str, repeats: int, threads: int) -> dict[str, object]:
    """Measure one case in a fresh process with this number of BLAS threads."""
    variables = {
        k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"
    }  # it may name a slower kernel
    variables |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weight.npy"
        np.save(file, made_weight(CASES[case][1]))
        command = [sys.executable, "-m", "bench.solvers_svd", "--case", case, "--weight", str(file)]
        command += ["--repeats", str(repeats)]
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def show(cases: dict[str, dict[str, object]]) -> None:
    """Print one line a case."""
    print(f"{'case':32} {'median s':>9} {'rel error':>10} {'peak MB':>8}")
    for name, found in cases.items():
        peak = float(str(found["peak_memory_bytes"])) / 1e6
        print(f"{name:32} {found['seconds_median']:9.3f} {found['rel_error']:10.6f} {peak:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="BLAS threads")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case")
    parser.add_argument("--case", choices=CASES, help="measure this one here and print it as JSON")
    parser.add_argument("--weight", type=Path, help="file of the weight of --case")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.case:
        json.dump(measure(options.case, options.weight, options.repeats), sys.stdout)
        return
    cases = {case: in_a_process(case, options.repeats, options.threads) for case in CASES}
    machine = environment(options.threads) | {p: version(p) for p in ("scipy", "tensorly")}
    text = json.dumps({"environment": machine, "repeats": options.repeats, "cases": cases}, indent=2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n")
    show(cases)


if __name__ == "__main__":
    main()
