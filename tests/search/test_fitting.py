"""Which candidates of a layer are looked into."""

import numpy as np
import pytest

from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import Method
from onnxdecomp.ranks.study import Study
from onnxdecomp.search.fitting import MAX_TIMED, Task, spread
from onnxdecomp.weights.fit import SHRUNK
from onnxdecomp.weights.moments import Moments
from tests.builders import conv_layer

SPATIAL, CUTS = find_methods("spatial-svd"), find_methods("channel-spatial-svd")


def task(n_channels: int, methods: tuple[Method, ...], *, asked_for: bool = False) -> Task:
    """Return a 3x3 layer whose weight has falling spectra, on white patches."""
    layer = conv_layer((n_channels, n_channels, 3, 3), (1, 12, 12), pads=(1, 1, 1, 1))
    scales = (1.0 + np.arange(n_channels)) ** -0.5
    weight = np.random.default_rng(0).standard_normal(layer.weight_shape) * scales[:, None, None]
    size = n_channels * 9
    moments = Moments(10 * size, np.zeros((1, size)), np.eye(size)[None])
    study = Study(layer, weight.astype(np.float32), methods, block=8, asked_for=asked_for)
    return Task(study, moments, np.zeros(n_channels), SHRUNK)


def names(found) -> set[tuple[str, tuple[int, ...]]]:
    return {(candidate.method.full_name, candidate.ranks) for candidate in found}


def test_chains_with_several_cuts_push_no_other_candidate_out():
    alone, together = spread(task(64, SPATIAL)), spread(task(64, (*SPATIAL, *CUTS)))
    cuts = [candidate for candidate in together if candidate.method in CUTS]
    assert names(together) == names(alone) | names(cuts)
    assert 0 < len(cuts) <= MAX_TIMED["cuts"]


@pytest.mark.parametrize("asked_for", [False, True])
def test_narrow_layers_are_left_to_two_steps_unless_asked_for(asked_for):
    found = spread(task(56, (*SPATIAL, *CUTS), asked_for=asked_for))
    assert any(candidate.method in CUTS for candidate in found) == asked_for
