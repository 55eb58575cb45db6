"""How many samples a look at a model takes, by the work of running it on one.

Work is counted in multiply-accumulates and not timed, so that the numbers are the same in each run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxdecomp.runtime.evaluate import Metric, Outputs

MIN_SAMPLES = 6
"""Samples that the divergence of a single layer is measured on, at the least."""

LOOK_MACS = 30e9
"""Multiply-accumulates of one such look, which bounds its time: about half a second on one core."""

ROUGH_SHARE, MIN_ROUGH_SAMPLES = 0.25, 16
"""Part of those samples, and its least, that is enough to tell ways to fit a layer apart."""

MANY_ANSWERS, FEW_ROUGH_SAMPLES = 256, 4
"""Its least where each sample gives so many answers, as an image or a sequence does."""

LONG_LOOK = 2
"""A look of so many times those multiply-accumulates is long, and a search makes do with fewer of them."""

MIN_RECOVERY_SAMPLES, MAX_RECOVERY_SAMPLES, RECOVERY_MACS = 32, 512, 300e9
"""Samples that last steps are solved on: as many as make so many multiply-accumulates in the layers of the
original, within these bounds. Both models run once on them."""


@dataclass(frozen=True)
class Work:
    """What looks at a model may take.

    Args:
        n_macs: Multiply-accumulates of the original on one sample.
        n_answers: Answers that each sample gives.
    """

    n_macs: int
    n_answers: int

    @property
    def n_look(self) -> int:
        """Samples that the divergence of a single layer is measured on."""
        return max(MIN_SAMPLES, self._within(LOOK_MACS))

    @property
    def n_rough(self) -> int:
        """Samples that tell ways to fit a layer apart."""
        least = MIN_ROUGH_SAMPLES if self.n_answers < MANY_ANSWERS else FEW_ROUGH_SAMPLES
        return max(int(ROUGH_SHARE * self.n_look), min(least, self.n_look))

    @property
    def n_recovery(self) -> int:
        """Samples that last steps are solved on."""
        return min(max(self._within(RECOVERY_MACS), MIN_RECOVERY_SAMPLES), MAX_RECOVERY_SAMPLES)

    @property
    def looks_are_long(self) -> bool:
        """Whether it takes long to see what a single layer does to the outputs."""
        return MIN_SAMPLES * self.n_macs > LONG_LOOK * LOOK_MACS

    def _within(self, macs: float) -> int:
        return int(macs / max(self.n_macs, 1))


def n_answers_each(metrics: Mapping[str, Metric], outputs: Outputs) -> int:
    """Return how many numbers or choices there are for each sample, of the output that has fewest of them."""
    found = []
    for name, measure in metrics.items():
        seen = np.asarray(measure.seen_of(name, outputs))
        shape = seen.shape[1:]
        is_of_classes = measure.compares != "numbers" and seen.dtype.kind not in "biu"
        found.append(prod(shape[:-1] if is_of_classes else shape))
    return min(found)
