"""Bring a copy of a model into the form in which onnxruntime quantizes it.

The copy is folded by onnxruntime's basic optimizations (BatchNormalization into Conv, constants behind
Identity, Transpose, Cast ...) and raised to the opset that knows a scale per channel. Where either changes
what the model computes, or brings in operators that are not ONNX's, a simpler form is tried. Every node is
named by its number in the original, a name that survives both steps, so that nodes keep their keys.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from io import StringIO
from logging import CRITICAL, NullHandler, disable, getLogger, root
from pathlib import Path
from tempfile import TemporaryDirectory
from warnings import catch_warnings, simplefilter

import onnx
import onnxruntime as ort
from onnxruntime.quantization.quant_utils import add_infer_metadata

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.io import INLINE_LIMIT_BYTES, load
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.names import reads
from onnxdecomp.graph.sites import is_dense, kind_refusal
from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.compare import verify_models
from onnxdecomp.runtime.int8.layers import (
    initializers,
    number_in,
    numbered_name,
    sort_out,
    with_names,
)
from onnxdecomp.runtime.session import LOG_FATAL, ORT_ERRORS, Feeds, Model, first_sentence

FIRST_OPSET = 13
"""DequantizeLinear has had a scale per channel since then."""

FIRST_IR_VERSION = 4
"""Initializers need not be inputs since then."""

SAME_MODEL = 1e-3
"""Relative error up to which the prepared copy counts as the same float model."""

ONNX_ERRORS: tuple[type[Exception], ...] = (
    *ORT_ERRORS,
    onnx.version_converter.ConvertError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    ModelError,
)
"""What goes wrong in onnx and onnxruntime."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Prepared:
    """A float model that `onnxruntime.quantization` can work on.

    Args:
        proto: The model: nodes named by number, shapes inferred.
        layers: Key of each node that can be quantized by the name it has in `proto`, in order.
        kept: Why the other Conv, ConvTranspose, Gemm and MatMul cannot be quantized, by key.
        original: The model it came from, with all of its weights.
    """

    proto: onnx.ModelProto
    layers: Mapping[str, str]
    kept: Mapping[str, str]
    original: onnx.ModelProto = field(repr=False)

    def origins(self, proto: onnx.ModelProto) -> dict[str, str]:
        """Return the keys of the nodes that those of a model made from `self.proto` came from, by key."""
        keys = [place.key for place in walk(self.original.graph)]
        numbers = {place.key: number_in(place.node.name) for place in walk(proto.graph)}
        return {key: keys[number] for key, number in numbers.items() if number is not None}

    def finish(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Give a model made from `self.proto` back what the original says: names, shapes, origin."""
        names = [place.node.name for place in walk(self.original.graph)]
        for place in walk(proto.graph):
            place.node.name = with_names(place.node.name, names)
        _sort(proto.graph)
        made = {output for node in proto.graph.node for output in node.output}
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(v for v in self.original.graph.value_info if v.name in made)
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(proto, name, getattr(self.original, name))
        del proto.metadata_props[:]
        proto.metadata_props.extend(self.original.metadata_props)
        used = {entry.domain for entry in self.original.opset_import} | _domains(proto)
        imports = [entry for entry in proto.opset_import if entry.domain in used]
        del proto.opset_import[:]
        proto.opset_import.extend(imports)
        return proto


def prepare(model: Model, feeds: Feeds, threads: int = 1) -> Prepared | str:
    """Return a copy of a model to quantize, or a sentence why it should not be quantized.

    Args:
        model: The model or its path; not modified.
        feeds: An input to compare the copy with the model on.
        threads: Threads inside an operator.

    Raises:
        ModelError: The model cannot be read.
    """
    source = load(model)
    if source.size_bytes > INLINE_LIMIT_BYTES:
        return (
            f"The model takes {source.size_bytes} bytes, and only one of up to {INLINE_LIMIT_BYTES} can be "
            "quantized."
        )
    original = onnx.load(model) if isinstance(model, Path) else source.proto
    problem = _refusal(original)
    if problem:
        return problem
    numbered = _numbered(original)
    for form in (_folded, _lifted):
        prepared = _checked(numbered, form, feeds, threads)
        if not isinstance(prepared, str):
            break
        problem = prepared
    else:
        return f"Its form for quantization could not be made: {problem}"
    layers, kept = sort_out(original, prepared)
    return Prepared(prepared, layers, kept, original)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what `onnxruntime.quantization` logs, prints and warns of; trouble comes as an exception."""
    before, handler = root.manager.disable, NullHandler()
    getLogger().addHandler(handler)  # without any, logging installs one that stays
    disable(CRITICAL)
    try:
        with redirect_stdout(StringIO()), catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        disable(before)
        getLogger().removeHandler(handler)


def _refusal(proto: onnx.ModelProto) -> str | None:
    nodes = [place.node for place in walk(proto.graph)] + [n for f in proto.functions for n in f.node]
    quantized = [
        node.op_type
        for node in nodes
        if node.op_type in _QUANTIZERS or "quantized" in (kind_refusal(node.op_type, node.domain) or "")
    ]
    if quantized:
        return f"The model is already quantized: it has {len(quantized)} {quantized[0]} and the like."
    if not any(is_dense(node.op_type, node.domain) for node in nodes):
        return "The model has no Conv, Gemm or MatMul."
    return None


def _numbered(original: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with nodes named by number, whose initializers are not inputs for IR's sake alone."""
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    for number, place in enumerate(walk(proto.graph)):
        place.node.name = numbered_name(number)
    if proto.ir_version < FIRST_IR_VERSION:
        names = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in names]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = FIRST_IR_VERSION
    return proto


def _checked(
    numbered: onnx.ModelProto,
    form: Callable[[onnx.ModelProto], onnx.ModelProto],
    feeds: Feeds,
    threads: int,
) -> onnx.ModelProto | str:
    """Return the model in a form of high enough opset, or what is wrong with it."""
    try:
        proto = _raised(form(numbered))
        _flatten_biases(proto)
        new = _domains(proto) - _domains(numbered)
        if new:
            return f"onnxruntime brings in operators of {', '.join(sorted(new))}."
        if _n_casts(proto) > _n_casts(numbered):
            return "onnxruntime computes it in another element type."
        _restore_interface(proto, numbered)
        check = verify_models(numbered, proto, [feeds], tolerance=SAME_MODEL, threads=threads)
        if check.problems:
            return check.problems[0]
        proto = onnx.shape_inference.infer_shapes(proto)
        _restore_interface(proto, numbered)  # the inferred shapes of outputs may say more
    except ONNX_ERRORS as error:
        return first_sentence(error)
    add_infer_metadata(proto)
    return proto


def _n_casts(proto: onnx.ModelProto) -> int:
    return sum(place.node.op_type == "Cast" for place in walk(proto.graph))


def _restore_interface(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    for name in ("input", "output"):
        values = getattr(proto.graph, name)
        del values[:]
        values.extend(getattr(original.graph, name))


def _folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model after onnxruntime's basic optimizations."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "folded.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = LOG_FATAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def _lifted(original: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its Constant nodes as initializers, where the quantizer looks for weights."""
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS and node.attribute[0].HasField("t"):
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _flatten_biases(proto: onnx.ModelProto) -> None:
    """Give a Gemm whose bias is (1, O) one of (O,), which broadcasts alike and has a scale per channel."""
    constants = initializers(proto)
    for node in proto.graph.node:
        bias = constants.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        if bias is not None and len(bias.dims) == 2 and bias.dims[0] == 1:
            flat = proto.graph.initializer.add()
            flat.CopyFrom(bias)
            flat.name = f"{node.output[0]}_bias"
            del flat.dims[0]
            node.input[2] = flat.name


def _raised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in an opset that can be quantized per channel."""
    version = max(entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS)
    if version >= FIRST_OPSET:
        return proto
    return onnx.version_converter.convert_version(proto, FIRST_OPSET)


def _domains(proto: onnx.ModelProto) -> set[str]:
    nodes = [place.node for place in walk(proto.graph)]
    return {node.domain for node in (*nodes, *(n for f in proto.functions for n in f.node))}


def _sort(graph: onnx.GraphProto) -> None:
    """Order nodes behind what they use, bodies included; else they stay in the order they are in."""
    producer = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    users: dict[int, list[int]] = defaultdict(list)
    missing = []
    for number, node in enumerate(graph.node):
        needed = {producer[name] for name in reads(node) if name in producer}
        missing.append(len(needed))
        for other in needed:
            users[other].append(number)
    ready = [number for number, count in enumerate(missing) if not count]
    heapify(ready)
    order = []
    while ready:
        number = heappop(ready)
        order.append(graph.node[number])
        for user in users[number]:
            missing[user] -= 1
            if not missing[user]:
                heappush(ready, user)
    del graph.node[:]
    graph.node.extend(order)
