"""What a search puts in the place of layers."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Self

from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.methods.base import Chain, FloatArray

Made = tuple[Chain, FloatArray | None]
"""A chain, and the bias ``(O,)`` in place of the layer's; None keeps that."""


class Replacement:
    """What takes the place of a group of layers; `later` makes it when it is first asked for.

    Args:
        group: The layers.
        chain: The chain.
        bias: ``(O,)`` in place of theirs; None keeps it.
        beside: Keys of the layers that are replaced with them or not at all.

    Attributes:
        identity: What chain and bias follow from, given model, samples and settings; empty when only they
            themselves tell.
    """

    def __init__(
        self,
        group: LayerGroup,
        chain: Chain,
        bias: FloatArray | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        self.group, self.identity, self.beside = group, "", tuple(beside)
        self._made: Callable[[], Made] = lambda: (chain, bias)

    @classmethod
    def later(cls, group: LayerGroup, identity: str, make: Callable[[], Made]) -> Self:
        """Return what `make` returns once something of it is asked for."""
        found = cls.__new__(cls)
        found.group, found.identity, found.beside, found._made = group, identity, (), cache(make)
        return found

    @property
    def chain(self) -> Chain:
        """The chain."""
        return self._made()[0]

    @property
    def bias(self) -> FloatArray | None:
        """``(O,)`` in place of the layers'; None keeps theirs."""
        return self._made()[1]


Replacements = Mapping[str, Replacement]
"""What is replaced, by key of the layer."""
