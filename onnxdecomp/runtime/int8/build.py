"""Build INT8 models from a prepared float model: any choice of nodes, over any of the ranges."""

from collections.abc import Collection, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.compare import output_error, verify_models
from onnxdecomp.runtime.in_order import in_order
from onnxdecomp.runtime.int8.channels import pad_channels
from onnxdecomp.runtime.int8.layers import attribute, initializers
from onnxdecomp.runtime.int8.normalization import normalizations, to_convolutions
from onnxdecomp.runtime.int8.prepare import ONNX_ERRORS, Prepared
from onnxdecomp.runtime.int8.ranges import find_ranges, tensors_data
from onnxdecomp.runtime.machine import int8_saturates
from onnxdecomp.runtime.session import Feeds, first_sentence, open_session, run

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights in INT8."""

MERGING = ("Add", "Mul", "Concat")
"""Operators that run in INT8 when all of their inputs are."""

PASSING = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize",
           "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split")  # fmt: skip
"""Operators that run in INT8 when their first input is."""

WORST_ERROR = 10.0
"""Relative error of an output from which on a model is as bad as one that does not run."""

SAME_SENSE = 0.5
"""Relative difference of outputs, optimizations off and on, up to which the same is computed: fused INT8
rounds otherwise, and on networks that INT8 ruins that alone makes up to 0.2."""

QUANTIZER_ERRORS: tuple[type[Exception], ...] = (
    *ONNX_ERRORS,
    LookupError,
    TypeError,
    AssertionError,
    AttributeError,
)
"""What the quantizer raises on models it does not expect."""


class Built(NamedTuple):
    """A model in INT8.

    Args:
        model: The model.
        done: The names of the nodes that are in INT8.
        padded: The names of those whose input is padded.
        origins: Keys of the float nodes that its nodes came from, by key.
    """

    model: onnx.ModelProto
    done: set[str]
    padded: set[str]
    origins: dict[str, str]


NO_RANGE = "its input or output is not finite on the samples"


class Int8Builder:
    """A float model with the ranges of its tensors.

    Args:
        prepared: The float model.
        feeds: Inputs to find the ranges on.
        compared: Inputs to compare models on.
        threads: Threads inside an operator.
        jobs: Of the inputs to compare models on, how many are run side by side.

    Attributes:
        layers: Key of each node that can be quantized by its name in the prepared model, in order.
        kept: Reason by key of those that cannot.

    Raises:
        ModelError: onnxruntime cannot run the model with its tensors as outputs.
    """

    def __init__(
        self,
        prepared: Prepared,
        feeds: Sequence[Feeds],
        compared: Sequence[Feeds],
        threads: int,
        jobs: int = 1,
    ) -> None:
        self._prepared = prepared
        self._compared = compared
        self._threads, self._jobs = threads, jobs
        self._constants = initializers(prepared.proto)
        self._normalizations = normalizations(prepared.proto)
        nodes = [node for node in prepared.proto.graph.node if self._is_known(node)]
        tensors = {name for node in nodes for name in (*node.input, *node.output)} - set(self._constants)
        self.ranges = find_ranges(prepared.proto, tensors, feeds, threads)
        self._ranged = min(self.ranges.values(), key=len).keys()
        bounded = {n.name for n in nodes if n.input[0] in self._ranged and n.output[0] in self._ranged}
        self.layers = {name: key for name, key in prepared.layers.items() if name in bounded}
        lost = {key: NO_RANGE for name, key in prepared.layers.items() if name not in bounded}
        self.kept = {**prepared.kept, **lost}
        session = open_session(prepared.proto, threads=threads)
        self._reference = [run(session, feed) for feed in compared]

    def n_products(self, name: str) -> int:
        """Return how many products are summed up in one output of a node."""
        (node,) = (node for node in self._prepared.proto.graph.node if node.name == name)
        shape = self._constants[node.input[1]].dims
        if node.op_type == "Conv":
            return prod(shape[1:])
        columns = node.op_type == "Gemm" and attribute(node, "transB", 0)
        return int(shape[-1] if columns else shape[-2] if len(shape) > 1 else 1)

    def build(
        self, names: Collection[str], percentage: float, *, signed: bool = False, padded: bool = False
    ) -> Built:
        """Return the model with the nodes `names` in INT8, and which of them really are.

        Args:
            names: Names of nodes in the prepared model.
            percentage: Which of the ranges.
            signed: Whether activations are signed.
            padded: Whether inputs are padded to whole blocks of channels.

        Raises:
            ModelError: The quantizer fails.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._prepared.proto)
        chosen = self._with_companions(set(names))
        _part_weights(proto, chosen)
        to_convolutions(proto, {name: n for name, n in self._normalizations.items() if name in chosen})
        quantizer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=int8_saturates(),
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if signed else QuantType.QUInt8,
            tensors_range=tensors_data(self.ranges[percentage]),
            nodes_to_quantize=sorted(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=[*LAYERS, *MERGING, *PASSING],
            extra_options={},
        )
        try:
            quantizer.quantize_model()
        except QUANTIZER_ERRORS as error:
            raise ModelError(f"onnxruntime cannot quantize the model: {first_sentence(error)}") from error
        result = quantizer.model.model
        done = _in_int8(result) & set(names)
        wider = pad_channels(result) if padded else set()
        origins = self._prepared.origins(result)
        return Built(self._prepared.finish(result), done, wider, origins)

    def error(self, proto: onnx.ModelProto) -> float:
        """Return the mean relative error of the outputs against the float model's, at most `WORST_ERROR`."""
        try:
            session = open_session(proto, threads=self._threads)
            outputs = list(in_order(partial(run, session), self._compared, self._jobs))
        except ModelError:
            return WORST_ERROR
        errors = [
            min(output_error(expected[name], got.get(name, np.empty(0))), WORST_ERROR)
            for expected, got in zip(self._reference, outputs, strict=True)
            for name in expected
        ]
        return float(np.mean(errors))

    def problem(self, proto: onnx.ModelProto) -> str | None:
        """Return what is wrong with a model beside its accuracy, or None."""
        feed, expected = self._compared[0], self._reference[0]
        check = verify_models(
            self._prepared.proto, proto, [feed], agreement_tolerance=SAME_SENSE, threads=self._threads
        )
        if check.problems:
            return check.problems[0]
        plain = run(open_session(proto, optimize=False, threads=self._threads), feed)
        for name, value in plain.items():
            same_shape = np.shape(value) == np.shape(expected[name])
            if same_shape and not np.isfinite(output_error(expected[name], value)):
                return f"Output '{name}' is not finite with onnxruntime's optimizations off."
        return None

    def _with_companions(self, names: set[str]) -> set[str]:
        """Return the nodes to quantize: `names`, and what can follow them in INT8."""
        chosen, int8 = set(names), set(self._constants)
        for node in self._prepared.proto.graph.node:
            if node.name in names:
                int8.update(node.output)
            elif node.op_type in LAYERS or not self._is_known(node):
                continue
            else:
                taken = node.input if node.op_type in MERGING else node.input[:1]
                inside = all(name in int8 for name in taken)
                if inside and not set(taken) <= set(self._constants) and node.output[0] in self._ranged:
                    chosen.add(node.name)
                    int8.update(node.output)
        return chosen

    def _is_known(self, node: NodeProto) -> bool:
        is_standard = node.domain in STANDARD_DOMAINS and node.op_type in (*LAYERS, *MERGING, *PASSING)
        return is_standard or node.name in self._normalizations


def _part_weights(proto: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Give the chosen layers weights of their own where others use them too, and are to see them in float."""
    layers = [n for n in proto.graph.node if n.name in chosen and n.op_type in LAYERS]
    used = {
        name
        for place in walk(proto.graph)
        if place.node.name not in chosen
        for name in place.node.input
    }  # fmt: skip
    copies: dict[str, str] = {}
    constants = initializers(proto)
    for node in layers:
        weight = node.input[1]
        if weight in used:
            if weight not in copies:
                copies[weight] = f"{weight}_int8"
                copy = proto.graph.initializer.add()
                copy.CopyFrom(constants[weight])
                copy.name = copies[weight]
            node.input[1] = copies[weight]


def _in_int8(proto: onnx.ModelProto) -> set[str]:
    """Return the names of the layers that take data and weight from DequantizeLinear."""
    dequantized = {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    layers = [n for n in proto.graph.node if n.op_type in LAYERS]
    return {n.name for n in layers if dequantized.issuperset(n.input[:2])}
