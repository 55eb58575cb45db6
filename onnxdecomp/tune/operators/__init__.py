"""The operators, one family a file; importing this package registers them all."""

from onnxdecomp.tune.operators import (
    activation,
    control,
    conv,
    elementwise,
    indexing,
    linear,
    logic,
    normalization,
    pooling,
    quantization,
    reduction,
    sequence,
    shape,
)
from onnxdecomp.tune.registry import OPERATORS

__all__ = [
    "OPERATORS",
    "activation",
    "control",
    "conv",
    "elementwise",
    "indexing",
    "linear",
    "logic",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "sequence",
    "shape",
]
