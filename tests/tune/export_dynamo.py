"""Write the files of exports/: `python -m tests.tune.export_dynamo` (needs onnxscript).

torch's dynamo exporter takes seconds for each network, so what it writes is kept; without the metadata in
which it names the lines of its source.
"""

from pathlib import Path

import onnx
import torch

from onnxdecomp.graph.names import graphs_by_scope
from tests.tune.architectures import ARCHITECTURES, build

EXPORTS = Path(__file__).parent / "exports"


def strip(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]
    for graph in graphs_by_scope(proto).values():
        for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            del part.metadata_props[:]
            part.ClearField("doc_string")


def main() -> None:
    for name in ARCHITECTURES:
        module, inputs = build(name)
        proto = torch.onnx.export(module, inputs, dynamo=True, verbose=False).model_proto
        strip(proto)
        onnx.save(proto, EXPORTS / f"{name}.onnx")


if __name__ == "__main__":
    main()
