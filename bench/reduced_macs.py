"""A public CIFAR-10 network with its five large 3x3 layers at a half, a third and a quarter of their MACs.

    python -m bench.reduced_macs [-o bench/results/reduced_macs.json]

The network comes from somebody else's .h5 and gets 80.14 % of the 10,000 test images right. No fine-tuning.
Where data are used they are 512 training images without labels; no test image is given to the tool. Accuracy
is that on all test images, with the standard error of the paired difference.
"""

import argparse
import tempfile
from bisect import bisect_right
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.networks import RESULTS, Network, record
from onnxdecomp import convert
from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.report.outcome import Report

NAME = "cifar10_keras"
LAYERS = tuple(f"conv2d_{number}_out" for number in range(1, 6))
"""All 3x3 convolutions but the first, which has three input channels."""

WANTED = {1 / 2: 0.799, 1 / 3: 0.793, 1 / 4: 0.785}
"""Accuracy to be reached by share of the MACs."""

WAYS = ("weights", "calibration", "target")
"""One share for all layers, from the weights alone or fitted to data, or one target for them together."""

FIRST_SHARE = 0.8
STEPS = 32
"""Shares of the weights that are tried lie between `FIRST_SHARE` and 1 times the share of the MACs."""


def converted(network: Network, output: Path | None, **options: Any) -> Report:
    """Convert the five layers, with nothing verified or timed afterwards."""
    return convert(network.path, output, include=LAYERS, allow_slower=True, verify="none", **options)


def options(network: Network, way: str, share: float, **given: Any) -> dict[str, Any]:
    """Return the options of `convert` for a share of the layers' MACs.

    Without padding a chain has more MACs than its share of the weights says, so the share of the weights is
    found by bisection, with ranks that need not be multiples of anything.
    """
    if way == "target":
        return {"target_macs": share, **given}
    given["rank_multiple"] = 1
    if way == "weights":
        del given["calibration"]

    def macs(rank: str) -> float:
        return share_of_macs(converted(network, None, rank=rank, **given))

    ranks = [f"ratio:{share * (FIRST_SHARE + (1 - FIRST_SHARE) * i / STEPS):.4f}" for i in range(STEPS + 1)]
    return {"rank": ranks[max(bisect_right(ranks, share, key=macs) - 1, 0)], **given}


def row(network: Network, way: str, share: float, folder: Path, calibration: str) -> dict[str, Any]:
    """Convert once and return the figures, or why there are none."""
    output = folder / "out.onnx"
    found: dict[str, Any] = {"way": way, "share": share, "wanted_accuracy": WANTED[share]}
    try:
        chosen = options(network, way, share, calibration=calibration, cache=str(folder / "cache"))
        start = perf_counter()
        report = converted(network, output, **chosen)
    except OnnxdecompError as error:
        return {**found, "error": str(error)}
    return {
        **found,
        "seconds": round(perf_counter() - start, 1),
        "rank": report.command["rank"],
        "share_of_macs": share_of_macs(report),
        **network.accuracy(output),
        "layers": {layer.key: [layer.method, list(layer.ranks), layer.fit] for layer in report.decomposed},
        "recovered": list(report.recovered),
        "notes": report.notes,
    }


def share_of_macs(report: Report) -> float:
    """Return the MACs of the included layers after over before."""
    macs = [layer.macs for layer in report.layers if layer.key in LAYERS]
    return sum(entry.after or 0 for entry in macs) / sum(entry.before or 0 for entry in macs)


def line(found: dict[str, Any]) -> str:
    """Return a row as a line."""
    start = f"{found['way']:12} {found['share']:.3f}"
    if "error" in found:
        return f"{start}  {found['error']}"
    error = 100 * found["whole_test_set"]["standard_error"]
    return (
        f"{start} (reached {found['share_of_macs']:.3f})  {100 * found['accuracy_after']:.2f} ± {error:.2f} %"
        f"  wanted {100 * found['wanted_accuracy']:.1f} %  {found['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "reduced_macs.json")
    arguments = parser.parse_args()
    network, rows = Network.load(NAME), []
    with tempfile.TemporaryDirectory() as folder:
        calibration = network.write_samples(Path(folder))["calibration"]
        for way in WAYS:
            for share in WANTED:
                rows.append(row(network, way, share, Path(folder), calibration))
                print(line(rows[-1]), flush=True)
                record(arguments.output, {NAME: rows})


if __name__ == "__main__":
    main()
