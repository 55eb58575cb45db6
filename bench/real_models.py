"""Convert every fetched model three ways and record what came out.

    python -m bench.real_models [NAME ...] [-o bench/results/real_models.json]

At full rank the outputs must equal the original's; ``--rank auto`` must never be slower; ``ratio:0.5`` halves
the weights of every layer that can be halved. Latencies are interleaved, one thread.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from models.fetch import INPUT_SHAPES, fetch
from onnxdecomp import convert
from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.report.as_json import plain
from onnxdecomp.runtime.machine import environment

RANKS = ("full", "auto", "ratio:0.5")
RESULT = Path(__file__).parent / "results" / "real_models.json"


def converted(path: Path, rank: str, shapes: dict[str, tuple[int, ...]], folder: Path) -> dict[str, Any]:
    """Convert one model and return the figures of its report."""
    output = folder / "out.onnx"
    try:
        report = convert(path, output, rank=rank, shapes=shapes)
    except OnnxdecompError as error:
        return {"error": str(error)}
    onnx.checker.check_model(str(output))
    kept = Counter(layer.reason for layer in report.layers if layer.status == "kept")
    return {
        "seconds": round(sum(stage.seconds for stage in report.stages), 2),
        "decomposed": len(report.decomposed),
        "methods": dict(Counter(layer.method for layer in report.decomposed)),
        "kept": dict(kept.most_common()),
        "model": plain(report.model),
        "output_error": report.output_error,
        "mac_reduction": report.model["macs"].ratio,
        "latency": plain(report.latency),
        "notes": report.notes,
    }


def summary(found: dict[str, Any]) -> str:
    """Return one conversion as a line."""
    if "error" in found:
        return str(found["error"])
    speedup = found["latency"]["speedup"] if found["latency"] else 1.0
    return (
        f"decomposed {found['decomposed']:4}  output error {found['output_error'] or 0:.2e}"
        f"  MACs / {found['mac_reduction'] or 1:.2f}  speed-up {speedup:.2f}  {found['seconds']:6.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=sorted(INPUT_SHAPES))
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.names:
        path = fetch(name)
        results[name] = {"input_shapes": plain(INPUT_SHAPES[name])}
        for rank in RANKS:
            with tempfile.TemporaryDirectory() as folder:
                found = converted(path, rank, INPUT_SHAPES[name], Path(folder))
            results[name][rank] = found
            print(f"{name:26} {rank:10} {summary(found)}", flush=True)
    text = json.dumps({"environment": environment(1), "models": results}, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
