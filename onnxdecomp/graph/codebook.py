"""Write float tensors of a model as codebooks; the file shrinks, a runtime folds the decoding at load.

Before:  y = Conv(x, w)
After:   i = Cast<to=INT32>(w/onnxdecomp/indices)
         c = Cast<to=FLOAT>(w/onnxdecomp/codebook)
         w = Gather(c, i)
         y = Conv(x, w)

The tensor keeps its name, so whatever uses it stays as it is.
"""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.graph.constant_weights import MAY_BE_OVERRIDDEN, is_overridable
from onnxdecomp.graph.decode import bytes_per_element, decode
from onnxdecomp.graph.draft import Draft
from onnxdecomp.graph.external import tensor_bytes
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import opset
from onnxdecomp.graph.names import MARK, fresh, graphs_by_scope, put_initializer
from onnxdecomp.graph.stored import StoredCodebook
from onnxdecomp.graph.tensors import dense_constants
from onnxdecomp.graph.weights import FLOAT_TYPES

__all__ = ["DECODED", "FOLDING_LIMIT_BYTES", "CodebookWriter", "StoredCodebook"]

DECODED = f"{MARK}codebook"
"""Ends the name of the node that makes a decoded tensor."""

FOLDING_LIMIT_BYTES = 1 << 30
"""onnxruntime does not compute a node at load whose output is larger."""

LEAST_OPSET = 7
"""The first operator set with arithmetic on integers."""

_SPARE_ELEMENTS = 8
_IR_WITHOUT_HIDDEN_CONSTANTS = 3


class CodebookWriter:
    """Collects tensors to write as codebooks and applies them at once.

    Args:
        model: The model as it was read; not modified.
        add_tensor: Stores an array under a name with a dtype and returns the tensor, such as
            `ModelWriter.add_tensor`.
        limit_bytes: No node of the decoding makes an output larger than this; what would is done in pieces
            along the channels and joined.
    """

    def __init__(
        self,
        model: Model,
        add_tensor: Callable[..., onnx.TensorProto],
        *,
        limit_bytes: int = FOLDING_LIMIT_BYTES,
    ) -> None:
        self._model = model
        self._add_tensor = add_tensor
        self._limit_bytes = limit_bytes
        self._opset = opset(model.proto)
        self._ir_version = model.proto.ir_version
        self._graphs = graphs_by_scope(model.proto)
        self._constants = dense_constants(model.proto)
        self._prefixes = set(model.taken_prefixes)
        self._shared_prefix = fresh("", self._prefixes) + MARK
        self._shared: dict[str, onnx.TensorProto] = {}
        self._drafts: dict[tuple[str, str], Draft] = {}

    def refusal(self, name: str, scope: str = "") -> str | None:
        """Return why a tensor cannot be written as a codebook, as a sentence; None if it can.

        Args:
            name: An initializer, or the output of a Constant node.
            scope: Key prefix of its graph (`graph.walk`), empty for the main graph.
        """
        graph = self._graphs.get(scope)
        if graph is not None and any(sparse.values.name == name for sparse in graph.sparse_initializer):
            return "it is stored as a sparse tensor"
        constant = self._constants.get((scope, name))
        if constant is None or graph is None:
            return f"'{name}' is no dense constant of its graph (one inside a function is not reached)"
        if constant.tensor.data_type not in FLOAT_TYPES:
            return "it is not of a float type (32, 64 or 16 bits, or bfloat16)"
        if self._opset < LEAST_OPSET:
            return (
                f"decoding needs operator set {LEAST_OPSET} and the model has {self._opset}: "
                f"raise it with --opset {LEAST_OPSET} or more"
            )
        if self._model.proto.training_info:
            return "the model carries training information, which refers to its weights by name"
        old_ir = self._ir_version <= _IR_WITHOUT_HIDDEN_CONSTANTS
        if old_ir and scope:
            return f"it stands in a body of a model of IR version {self._ir_version}"
        if is_overridable(name, graph, self._ir_version):
            return MAY_BE_OVERRIDDEN
        size_bytes = tensor_bytes(constant.tensor)
        if size_bytes > self._limit_bytes:
            return (
                f"its {size_bytes} bytes are more than the {self._limit_bytes} that onnxruntime computes at "
                "load, so that it would be decoded again at every run"
            )
        return None

    def store(self, name: str, codebook: StoredCodebook, scope: str = "") -> None:
        """Write a tensor for which `refusal` says nothing as a codebook.

        Raises:
            ValueError: It has a refusal, another shape than the indices, or was stored already.
        """
        problem = self.refusal(name, scope)
        if problem is None and (scope, name) in self._drafts:
            problem = "it was stored already"
        constant = self._constants.get((scope, name))
        if constant and tuple(constant.tensor.dims) != codebook.indices.shape:
            problem = f"its shape is {list(constant.tensor.dims)}, not {list(codebook.indices.shape)}"
        if problem or constant is None:
            raise ValueError(f"{name}: {problem}")
        prefix = fresh(name, self._prefixes) + MARK
        inner_prefix = f"{self._shared_prefix}{len(self._drafts)}."
        draft = Draft(prefix, inner_prefix, self._opset, self._store, self._share)
        data_type = constant.tensor.data_type
        pieces = [
            decode(draft, piece, data_type, self._ir_version) for piece in self._pieces(codebook, data_type)
        ]
        if len(pieces) > 1:
            draft.node("Concat", *pieces, axis=codebook.axis)
        last = draft.nodes[-1]
        last.output[0] = name
        last.name = prefix.removesuffix(MARK) + DECODED
        self._drafts[scope, name] = draft

    def finish(self) -> onnx.ModelProto:
        """Return the model with the codebooks; without any it equals the original."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model.proto)
        graphs = graphs_by_scope(proto)
        old_ir = self._ir_version <= _IR_WITHOUT_HIDDEN_CONSTANTS
        for scope, graph in graphs.items():
            drafts = {name: draft for (home, name), draft in self._drafts.items() if home == scope}
            if drafts:
                _insert_nodes(graph, drafts)
            for name, draft in drafts.items():
                for number, tensor in enumerate(draft.tensors):
                    # the indices stand where the weight was, the others behind all
                    put_initializer(graph, tensor, "" if number else name, input_too=old_ir)
        for tensor in self._shared.values():
            put_initializer(proto.graph, tensor, "", input_too=old_ir)
        return proto

    def _pieces(self, codebook: StoredCodebook, data_type: int) -> list[StoredCodebook]:
        """Return a codebook in pieces that stay below the limit, whole groups of channels each."""
        per_element = bytes_per_element(codebook, data_type, self._opset)
        before, n_channels, behind = codebook.rows
        if codebook.indices.size * per_element <= self._limit_bytes:
            return [codebook]
        n_elements = self._limit_bytes // per_element - _SPARE_ELEMENTS
        size = codebook.group_size or 1
        step = max(n_elements // (before * behind) // size, 1) * size
        return [codebook.part(start, min(start + step, n_channels)) for start in range(0, n_channels, step)]

    def _store(self, name: str, array: NDArray[np.generic]) -> onnx.TensorProto:
        return self._add_tensor(name, array, array.dtype)

    def _share(self, label: str, array: NDArray[np.generic]) -> str:
        if label not in self._shared:
            self._shared[label] = self._store(self._shared_prefix + label, array)
        return self._shared_prefix + label


def _insert_nodes(graph: onnx.GraphProto, drafts: dict[str, Draft]) -> None:
    """Decode before everything else, and what a Constant node held in place of that node."""
    initializers = {tensor.name for tensor in graph.initializer}
    for index in range(len(graph.node) - 1, -1, -1):
        output = next(iter(graph.node[index].output), "")
        if output in drafts:
            del graph.node[index]
            for node in reversed(drafts[output].nodes):
                graph.node.insert(index, node)
    first = [node for name, draft in drafts.items() if name in initializers for node in draft.nodes]
    for node in reversed(first):
        graph.node.insert(0, node)
