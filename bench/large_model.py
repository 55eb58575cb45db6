"""Convert a generated model larger than 4 GB and record seconds and peak resident memory.

    python -m bench.large_model [--layers 64] [-o bench/results/large_model.json]

The model is a row of Gemm layers of 4096x4096 with external data; memory must follow the largest layer,
67 MB, not the model. The conversion runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxdecomp.runtime.machine import environment, peak_memory_bytes

SIDE = 4096
RESULT = Path(__file__).parent / "results" / "large_model.json"
LIMIT_BYTES = 1_500_000_000


def write_model(path: Path, n_layers: int) -> None:
    """Write a row of Gemm layers, one weight in memory at a time."""
    rng = np.random.default_rng(0)
    decay = np.exp(-np.arange(SIDE) / 400).astype(np.float32)
    nodes, weights = [], []
    with Path(f"{path}.data").open("wb") as data:
        for index in range(n_layers):
            left, right = (rng.standard_normal((SIDE, 64), dtype=np.float32) for _ in range(2))
            weight = left @ (right * decay[:64]).T / SIDE  # (4096, 4096)
            weight += 0.01 * rng.standard_normal((SIDE, SIDE), dtype=np.float32) / 64
            tensor = TensorProto(name=f"w{index}", dims=weight.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": f"{path.name}.data", "offset": data.tell(), "length": weight.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(weight.tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("Gemm", [f"x{index}", f"w{index}"], [f"x{index + 1}"], transB=1))
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [1, SIDE]) for i in (0, n_layers)]
    graph = helper.make_graph(nodes, "row", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def convert_here(source: str, output: str) -> None:
    """Convert in this process and print what it took as JSON."""
    from onnxdecomp import convert

    start = perf_counter()
    report = convert(source, output, rank="ratio:0.25", verify="layers")
    seconds = round(perf_counter() - start, 1)
    figures = {
        "seconds": seconds,
        "decomposed": len(report.decomposed),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--here", nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.here:
        convert_here(*arguments.here)
        return
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        write_model(source, arguments.layers)
        command = [sys.executable, "-m", "bench.large_model", "--here", str(source), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sizes = [sum(p.stat().st_size for p in Path(folder).glob(f"{end}.onnx*")) for end in ("in", "out")]
    figures = json.loads(done.stdout) | {"bytes_before": sizes[0], "bytes_after": sizes[1]}
    figures["within_limit"] = figures["peak_memory_bytes"] <= LIMIT_BYTES
    print(json.dumps(figures, indent=1))
    text = json.dumps({"environment": environment(1), "layers": arguments.layers, **figures}, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
