"""The knapsack over layers against scipy's exact solver: excess error and time.

    python -m bench.knapsack [--seeds 3] [--repeats 5] [-o bench/results/knapsack.json]

Instances have 60 layers of 32 options; budgets are shares of the way from the least cost to the cost of the
least error. The excess is over the bound that `scipy.optimize.milp` (HiGHS) proves, so it is never
understated. Milliseconds are processor time, on one thread, of everything from the list of options to the
choice.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from time import process_time

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from onnxdecomp.ranks.knapsack import Option, choose, frontier
from onnxdecomp.runtime.machine import environment

RESULT = Path(__file__).parent / "results" / "knapsack.json"
N_LAYERS, N_OPTIONS = 60, 32
BUDGETS = (0.02, 0.1, 0.3, 0.6, 0.9)
KINDS = ("decaying", "stairs", "twins", "random", "proportional")
"""Errors that fall with cost as those of ranks do, with noise; errors in steps; layers in groups of equal
costs; errors and costs that have nothing to do with each other; errors that cost the same everywhere, so
that the linear relaxation tells nothing apart (the hard case, not one that networks pose)."""


def instance(
    kind: str, seed: int, n_layers: int = N_LAYERS, n_options: int = N_OPTIONS
) -> list[list[Option]]:
    """Return made layers of one of `KINDS`."""
    rng = np.random.default_rng(seed)
    layers = []
    for number in range(n_layers):
        if kind != "twins" or number % 6 == 0:
            scale, power = 10 ** rng.uniform(-1, 1), rng.uniform(0.5, 4)
            costs = np.sort(rng.uniform(0.05, 1.0, n_options))
        errors = {
            "decaying": 10 ** rng.uniform(-2, 0) * (costs**-power - 1) * rng.uniform(0.9, 1.1, n_options),
            "stairs": np.floor(8 * (1 - costs)) / 8 * 10 ** rng.uniform(-2, 0),
            "twins": (costs**-power - 1) * rng.uniform(0.8, 1.2, n_options),
            "random": rng.uniform(0.0, 1.0, n_options),
            "proportional": scale * (3 - costs),
        }[kind]
        pairs = zip(errors, scale * costs, strict=True)
        layers.append([Option(float(error), float(cost)) for error, cost in pairs])
    return layers


def budget_at(layers: Sequence[Sequence[Option]], share: float) -> float:
    """Return the budget a share of the way from the least cost to the cost of the least error."""
    path = frontier(layers)
    return path[-1][0] + share * (path[0][0] - path[-1][0])


def total_error(layers: Sequence[Sequence[Option]], choice: Sequence[int]) -> float:
    """Return the error of a choice."""
    return sum(options[index].error for options, index in zip(layers, choice, strict=True))


def least_error(layers: Sequence[Sequence[Option]], budget: float, seconds: float = 20.0) -> float:
    """Return the error scipy proves no choice to be below: the optimum, unless it runs out of time."""
    options = [(number, option) for number, layer in enumerate(layers) for option in layer]
    rows = [number for number, _ in options]
    one_each = csr_array((np.ones(len(rows)), (rows, range(len(rows)))), shape=(len(layers), len(rows)))
    costs = np.array([[option.cost for _, option in options]])
    solved = milp(
        [option.error for _, option in options],
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs, -np.inf, budget)],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6, "time_limit": seconds},
    )
    return float(solved.mip_dual_bound)


def measure(kind: str, seeds: int, repeats: int) -> dict[str, object]:
    """Return the figures of one kind of instance."""
    excess, hull_excess, ours_ms, exact_ms = [], [], [], []
    for seed in range(seeds):
        layers = instance(kind, seed)
        for share in BUDGETS:
            budget = budget_at(layers, share)
            for _ in range(repeats):
                start = process_time()
                choice = choose(layers, budget)
                ours_ms.append(1e3 * (process_time() - start))
            start = process_time()
            least = least_error(layers, budget)
            exact_ms.append(1e3 * (process_time() - start))
            if choice is None:
                raise SystemExit(f"{kind}, seed {seed}: no choice at a budget above the least cost.")
            excess.append(total_error(layers, choice) / least - 1)
            hull_excess.append(
                min(error for cost, error, _ in frontier(layers) if cost <= budget) / least - 1
            )
    return {
        "excess_largest": max(excess),
        "hull_path_excess_largest": max(hull_excess),
        "ms_median": statistics.median(ours_ms),
        "ms_quartiles": statistics.quantiles(ours_ms)[::2],
        "ms_largest": max(ours_ms),
        "milp_ms_median": statistics.median(exact_ms),
        "n_instances": len(excess),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="instances of each kind, each at all budgets")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each choice")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    found = {kind: measure(kind, options.seeds, options.repeats) for kind in KINDS}
    figures = {
        "environment": environment(1) | {"scipy": version("scipy")},
        "layers": N_LAYERS,
        "options": N_OPTIONS,
        "budgets": BUDGETS,
        "repeats": options.repeats,
        "clock": "processor time",
        "kinds": found,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"{'instances':14}{'excess':>10}{'hull only':>11}{'median ms':>11}{'largest ms':>12}{'milp ms':>9}")
    for kind, row in found.items():
        print(
            f"{kind:14}{row['excess_largest']:10.1e}{row['hull_path_excess_largest']:11.1e}"
            f"{row['ms_median']:11.1f}{row['ms_largest']:12.1f}{row['milp_ms_median']:9.0f}"
        )


if __name__ == "__main__":
    main()
