"""A layer in one step, as it is: what becomes of one that lost channels and is not decomposed.

    W (O, I, *K) -> W (O, I, *K)

It is not registered, since it makes nothing smaller: the channels went before (`search.pruning`).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks


class Whole(Method):
    """One step with the weight itself, and no rank."""

    name: ClassVar[str] = "pruned"
    rank_names: ClassVar[tuple[str, ...]] = ()

    def refusal(self, layer: Layer) -> str | None:
        """Never refuse."""
        return None

    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return no ranks."""
        return ()

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the layer as a step."""
        return (layer.spec,)

    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> Analysis:
        """Return what gives the weight back."""
        return _Itself(np.asarray(weight, np.float64))


@dataclass(frozen=True)
class _Itself(Analysis):
    """A weight ``(O, I/G, *K)``, without an error."""

    weight: FloatArray

    def error(self, ranks: Ranks) -> float:
        return 0.0

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        return [self.weight]
