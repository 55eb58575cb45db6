"""Ours against what a user would pick instead: same networks, same budget, timed in one run.

    python -m bench.against [NAME ...] [--max-drop 0.01 ...] [-o bench/results/against.json]
    python -m bench.against --plot

The arms are those of `bench.arms`. Half of the labelled test images are given to each; accuracy is measured
on the whole test set and on the other half. All arms of a network are timed in turn with the original, with
one thread and with two. Results are written after every network, and networks already in the file stay there
unless they are named. ``--plot`` draws the file beside it, as a PNG.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.against_plot import draw
from bench.arms import ENERGY, EVBMF, FAMILIES, INT8, OURS, OURS_INT8, Make, arms
from bench.networks import NAMES, RESULTS, Network, record, recorded

Row = dict[str, Any]

RIVALS = ((OURS, ENERGY), (OURS, EVBMF), (OURS_INT8, INT8))
"""What is compared: one of ours with what it stands against."""


def compared(name: str, budgets: Sequence[float], folder: Path) -> list[Row]:
    """Return a row for every arm and budget of a network."""
    network = Network.load(name)
    rows: list[Row] = []
    paths: list[Path] = []
    for (family, variant), make in arms(network, folder).items():
        for max_drop in budgets:
            path = folder / f"{len(rows)}.onnx"
            row: Row = {"family": family, "variant": variant, "max_drop": max_drop}
            rows.append(row | measured(network, make, max_drop, path, paths))
            print(f"{name:16}{line(rows[-1])}", flush=True)
    for threads, found in network.latencies({str(path): path for path in paths}).items():
        for row in rows:
            if "path" in row:
                row.setdefault("latency", {})[threads] = found[row["path"]]
    for row in rows:
        row.pop("path", None)
    for _, group in groupby(sorted(rows, key=_key), key=_key):
        best(list(group))["counts"] = True
    return rows


def measured(network: Network, make: Make, max_drop: float, path: Path, paths: list[Path]) -> Row:
    """Let an arm make its model and measure it; add what is to be timed to `paths`."""
    start = perf_counter()
    try:
        made = make(max_drop, path)
        seconds = round(perf_counter() - start, 1)
        accuracy = network.accuracy(made.path)
    except Exception as error:  # noqa: BLE001  # tools of others raise anything, and then that is the result
        return {"error": f"{type(error).__name__}: {error}"}
    if made.path not in paths:
        paths.append(made.path)
    return {
        "path": str(made.path),
        "settings": made.settings,
        "within_budget": -accuracy["given_half"]["gain"] <= max_drop,
        **accuracy,
        "mac_reduction": made.mac_reduction,
        "size_reduction": network.path.stat().st_size / made.path.stat().st_size,
        "seconds": seconds,
        "notes": list(made.notes),
    }


def _key(row: Row) -> tuple[float, int]:
    return row["max_drop"], FAMILIES.index(row["family"])


def best(rows: Sequence[Row]) -> Row:
    """Return the row of a family that counts: the fastest within the budget, else that which loses least."""

    def value(row: Row) -> tuple[int, float]:
        if "error" in row:
            return 0, 0.0
        if not row["within_budget"]:
            return 1, float(row["given_half"]["gain"])
        return 2, float(row["latency"]["1"]["speedup"])

    return max(rows, key=value)


def line(row: Row) -> str:
    """Return a row as a line; what was not measured yet is left out."""
    start = f"{row['max_drop']:<6g} {row['family']:18}{row['variant']:20}"
    if "error" in row:
        return f"{start}{row['error']}"
    drops = "  ".join(
        f"{part} {0 - 100 * row[key]['gain']:5.2f} ± {100 * row[key]['standard_error']:.2f}"
        for part, key in (("drop", "whole_test_set"), ("unseen", "unseen_half"))
    )
    speed = ""
    if "latency" in row:
        speed = "  faster " + ", ".join(
            f"{row['latency'][threads]['speedup']:.2f}x" for threads in ("1", "2")
        )
    return (
        f"{start}{drops}  {'within' if row['within_budget'] else 'BEYOND'}{speed}  MACs / "
        f"{row['mac_reduction']:.2f}  size / {row['size_reduction']:.2f}  {row['seconds']:.0f} s  "
        f"({row['settings']})"
    )


def print_tables(networks: Mapping[str, Sequence[Row]]) -> None:
    """Print all rows, those that count with a star, and how far ours is ahead."""
    for name, rows in networks.items():
        print(
            f"\n{name}: original {100 * next(r['accuracy_before'] for r in rows if 'error' not in r):.2f} %"
        )
        for row in sorted(rows, key=_key):
            print("*" if row.get("counts") else " ", line(row))
    print()
    for mine, other in RIVALS:
        ratios, words = [], []
        for name, max_drop, us, them in _pairs(networks, mine, other):
            ratio = _speed(us) / _speed(them)
            ratios.append(ratio)
            words.append(f"{name} at {max_drop:g}: {ratio:.2f}x{_remark(us, 'ours ')}{_remark(them, '')}")
        if ratios:
            mean = float(np.exp(np.mean(np.log(ratios))))
            print(f"{mine} over {other}, one thread: {mean:.2f}x in geometric mean; {'; '.join(words)}")


def _pairs(
    networks: Mapping[str, Sequence[Row]], mine: str, other: str
) -> Iterator[tuple[str, float, Row, Row]]:
    for name, rows in networks.items():
        counting = {(row["max_drop"], row["family"]): row for row in rows if row.get("counts")}
        for max_drop in sorted({row["max_drop"] for row in rows}):
            yield name, max_drop, counting[max_drop, mine], counting[max_drop, other]


def _speed(row: Row) -> float:
    return 1.0 if "error" in row else float(row["latency"]["1"]["speedup"])


def _remark(row: Row, whose: str) -> str:
    if "error" in row:
        return f" ({whose}failed)"
    return "" if row["within_budget"] else f" ({whose}beyond the budget)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.01], metavar="DROP")
    parser.add_argument("--plot", action="store_true", help="only print and draw the file of results")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "against.json")
    arguments = parser.parse_args()
    results = recorded(arguments.output, to_extend=not arguments.plot)
    for name in () if arguments.plot else arguments.names:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compared(name, arguments.max_drop, Path(folder))
        record(arguments.output, results)
    print_tables(results)
    if arguments.plot:
        draw(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
