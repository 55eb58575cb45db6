"""One-dimensional k-means of weights against exact and usual solvers: time, error and peak memory.

    python -m bench.clustering [--repeats 15] [-o bench/results/clustering.json]

* 589,824 weights (256 x 256 x 3 x 3) into 64 centroids: the time for the centroids, their rounding to
  float16 and all indices.
* 20,000 values of several distributions: the loss above the exact optimum of `kmeans1d`, and that of
  scikit-learn's KMeans with ten restarts above it (``pip install kmeans1d scikit-learn``).
* 100 million weights into 16 and 256 centroids, in a process of its own for its peak memory.

All weights are generated. One thread.
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
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxdecomp.runtime.machine import environment, peak_memory_bytes
from onnxdecomp.weights.cluster import cluster
from onnxdecomp.weights.kmeans1d import best_centroids
from onnxdecomp.weights.line import Line

RESULT = Path(__file__).parent / "results" / "clustering.json"
N_LAYER, N_SAMPLE, N_LARGE = 589_824, 20_000, 100_000_000
N_CENTROIDS = (4, 16, 64, 256)

Values = NDArray[np.float32]
MADE: dict[str, Callable[[np.random.Generator, int], NDArray[np.floating]]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "student t, 4": lambda rng, n: rng.standard_t(4, n),
    "uniform": lambda rng, n: rng.random(n),
}


def made(name: str, n: int) -> Values:
    return MADE[name](np.random.default_rng(0), n).astype(np.float32)


def loss_of(values: Values, centroids: NDArray[np.float64]) -> float:
    """Return the sum of squared distances to the nearest of rising centroids."""
    wide = values.astype(np.float64)
    nearest = centroids[np.searchsorted((centroids[:-1] + centroids[1:]) / 2, wide)]
    return float(np.sum((wide - nearest) ** 2))


def time_of_a_layer(repeats: int) -> dict[str, object]:
    """Time the clustering of one layer's weights for each distribution."""
    found: dict[str, object] = {}
    for name in MADE:
        weight = made(name, N_LAYER).reshape(256, -1)
        milliseconds, cpu_milliseconds = [], []
        for _ in range(repeats):
            start, start_cpu = perf_counter(), process_time()
            cluster(weight, 6)
            milliseconds.append(1e3 * (perf_counter() - start))
            cpu_milliseconds.append(1e3 * (process_time() - start_cpu))
        found[name] = {
            "median_ms": statistics.median(milliseconds),
            "least_ms": min(milliseconds),
            "most_ms": max(milliseconds),
            "median_cpu_ms": statistics.median(cpu_milliseconds),
        }
    return found


def errors_on_samples() -> list[dict[str, object]]:
    """Compare losses with the exact optimum and with scikit-learn."""
    import kmeans1d
    from sklearn.cluster import KMeans

    found: list[dict[str, object]] = []
    for name in MADE:
        values = made(name, N_SAMPLE)
        line = Line.of(values)
        for k in N_CENTROIDS:
            exact = np.sort(np.array(kmeans1d.cluster(values.astype(np.float64), k).centroids))
            usual = KMeans(k, n_init=10, random_state=0).fit(values.astype(np.float64)[:, np.newaxis])
            least = loss_of(values, exact)
            ours = loss_of(values, best_centroids(line, k)) / least - 1
            theirs = loss_of(values, np.sort(usual.cluster_centers_[:, 0])) / least - 1
            found.append({"values": name, "centroids": k, "ours_above": ours, "scikit_learn_above": theirs})
            print(
                f"{name:14} {k:4} centroids  ours {ours:+.1e}  scikit-learn {theirs:+.1e} above the optimum"
            )
    return found


def measure_large(bits: int) -> dict[str, object]:
    """Cluster many weights in this process and return its numbers."""
    rng = np.random.default_rng(0)
    weight = np.empty((10_000, N_LARGE // 10_000), np.float32)
    for row in weight:
        rng.standard_normal(out=row, dtype=np.float32)
    baseline = peak_memory_bytes()
    start, start_cpu = perf_counter(), process_time()
    cluster(weight, bits)
    seconds, cpu_seconds = perf_counter() - start, process_time() - start_cpu
    return {
        "bits": bits,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "beyond_input_bytes": peak_memory_bytes() - baseline,
    }


def in_a_process(bits: int) -> dict[str, object]:
    command = [sys.executable, "-m", "bench.clustering", "--large", str(bits)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="runs of each layer")
    parser.add_argument("--large", type=int, help="cluster many weights to this many bits here; print JSON")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    threadpool_limits(1, "blas")  # as in a conversion
    if options.large:
        json.dump(measure_large(options.large), sys.stdout)
        return
    layer = time_of_a_layer(options.repeats)
    print(json.dumps(layer, indent=2))
    large = [in_a_process(bits) for bits in (4, 8)]
    print(json.dumps(large, indent=2))
    samples = errors_on_samples()
    machine = environment(1) | {p: version(p) for p in ("kmeans1d", "scikit-learn")}
    text = json.dumps({"environment": machine, "layer": layer, "large": large, "samples": samples}, indent=2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
