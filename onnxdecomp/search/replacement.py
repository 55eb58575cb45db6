"""What a search puts in the place of layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.methods.base import Chain, FloatArray


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a group of layers.

    Args:
        group: The layers.
        chain: The chain.
        bias: ``(O,)`` in place of theirs; None keeps it.
    """

    group: LayerGroup
    chain: Chain
    bias: FloatArray | None = None


Replacements = Mapping[str, Replacement]
"""What is replaced, by key of the layer."""
