"""Take for constants what a model lists as inputs only because it is a weight, on request only."""

import onnx

from onnxdecomp.graph.io import INLINE_LIMIT_BYTES, Model, with_data_inside
from onnxdecomp.graph.names import remove

IR_WITH_DEFAULTS = 4
"""First IR version in which an initializer that is listed as an input may be overridden by a caller."""

MAY_BE_OVERRIDDEN = (
    "its weight is also an input of the model, which a caller may override: --constant-weights takes such "
    "weights for constants"
)
"""Why a weight is left alone."""


def overridable(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the inputs that have a default."""
    return {tensor.name for tensor in graph.initializer} & {value.name for value in graph.input}


def is_overridable(name: str, graph: onnx.GraphProto, ir_version: int) -> bool:
    """Tell whether a caller may give another value for an initializer of a graph."""
    return ir_version >= IR_WITH_DEFAULTS and any(value.name == name for value in graph.input)


def with_constant_weights(model: Model) -> Model:
    """Return the model without the inputs that have a default: no caller may override them any more.

    Exporters of old list every weight so. onnxruntime then neither folds nor packs them, and a rewritten
    weight could not be overridden as before.

    Args:
        model: The model as it was read; not modified, and returned itself where there is no such input. What
            files up to IR version 3 list is constant as it is.
    """
    names = overridable(model.proto.graph)
    if model.proto.ir_version < IR_WITH_DEFAULTS or not names:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    remove(proto.graph.input, names)
    inside = with_data_inside(Model(proto, model.base_dir), INLINE_LIMIT_BYTES)
    return Model(inside.proto, model.base_dir, model.path if inside.data_files else None)
