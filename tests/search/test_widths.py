"""The choice of bits for a budget of accuracy, on losses that are known."""

from types import SimpleNamespace

import pytest

from onnxdecomp.runtime.drop import Drop
from onnxdecomp.search.widths import BITS, MAX_WEAKER, _Search

N_WEIGHTS, SIZE_BYTES, BEFORE = 4, 40_000, 0.02
"""Weights, their bytes when dense, and what the model loses with all of them dense."""


def error(bits: int) -> float:
    return 2.0**-bits


def loss(place: int, bits: int | None) -> float:
    return 0.0 if bits is None else (1 + place) * error(bits) ** 2


class Known:
    """Weights, and what loses the sum of what they lose: on other samples `elsewhere` times that."""

    weights = [SimpleNamespace(size_bytes=SIZE_BYTES, rule=SimpleNamespace(bits=None))] * N_WEIGHTS
    dense = [None] * N_WEIGHTS

    def __init__(self, elsewhere: float, noise: float) -> None:
        self.elsewhere, self.noise, self.n_looks = elsewhere, noise, 0

    def points(self, place):
        return {bits: (error(bits), SIZE_BYTES * bits // 32) for bits in BITS}

    def build(self, chosen):
        return chosen

    def lost(self, chosen):
        return sum(loss(place, bits) for place, bits in enumerate(chosen))

    def divergence_from(self, model):
        return self.lost

    def drop(self, lost: float) -> Drop:
        return Drop(lost, self.noise, 1.0, 1.0 - lost, 1000)

    def judged(self, chosen):
        self.n_looks += 1
        drop = self.drop(BEFORE + self.lost(chosen))
        return drop, drop.value

    def confirmed(self, chosen):
        return self.drop(BEFORE + self.elsewhere * self.lost(chosen))


def found(*, max_drop=0.1, elsewhere=1.0, noise=0.0):
    known = Known(elsewhere, noise)
    search = _Search(known, known)
    chosen = search.within_drop(max_drop)
    whole = None if chosen is None else BEFORE + (1 + elsewhere) / 2 * known.lost(chosen)
    return chosen, whole, known.n_looks


def size(chosen) -> int:
    return sum(bits or 32 for bits in chosen)


def test_widths_just_inside_the_budget_are_found_in_few_looks():
    chosen, lost, n_looks = found()
    assert 0.07 < lost <= 0.1
    assert n_looks <= 5
    assert chosen == sorted(chosen)  # what loses more gets more bits


@pytest.mark.parametrize("elsewhere", [1.3, 2.0, 5.0])
def test_widths_that_do_not_hold_on_other_samples_give_way_to_wider_ones(elsewhere):
    chosen, lost, n_looks = found(elsewhere=elsewhere)
    assert size(chosen) > size(found()[0])
    assert 0.03 < lost <= 0.1
    assert n_looks <= 5 + MAX_WEAKER


def test_the_standard_error_over_all_samples_counts_against_widths():
    (certain, *_), (doubtful, lost, _) = found(), found(noise=0.04)
    assert size(doubtful) > size(certain)
    assert lost + 0.04 / 2**0.5 <= 0.1


def test_where_nothing_holds_all_weights_stay_dense():
    assert found(elsewhere=1e6)[0] is None
    assert found(max_drop=0.01)[0] is None
