import numpy as np
import pytest

from onnxdecomp.runtime.parts import Part, parts_of


def detections(n: int = 8, places: int = 50, *, coefficients: int = 0, seed: int = 0):
    """Return boxes in pixels, what is believed of three classes, and coefficients, ``(n, places, 7 + k)``."""
    rng = np.random.default_rng(seed)
    boxes = 100 + 30 * rng.standard_normal((n, places, 4))
    beliefs = 0.02 * rng.random((n, places, 3))
    return np.concatenate([boxes, beliefs, 0.5 * rng.standard_normal((n, places, coefficients))], axis=2)


BOXES, BELIEFS = Part("y", 2, (0, 1, 2, 3)), Part("y", 2, (4, 5, 6))


def test_boxes_and_what_is_found_in_them_are_two_kinds():
    assert parts_of("y", detections()) == [BOXES, BELIEFS]


def test_the_kinds_are_found_along_any_axis():
    found = parts_of("y", detections().swapaxes(1, 2))
    assert found == [Part("y", 1, BOXES.entries), Part("y", 1, BELIEFS.entries)]
    alone = parts_of("y", detections(n=400, places=1)[:, 0])
    assert alone == [Part("y", 1, BOXES.entries), Part("y", 1, BELIEFS.entries)]


def test_coefficients_are_a_third_kind():
    assert parts_of("y", detections(coefficients=2)) == [BOXES, BELIEFS, Part("y", 2, (7, 8))]


def test_entries_that_never_vary_are_of_another_kind_than_shares():
    output = detections()
    output[:, :, 2] = -7.0
    assert parts_of("y", output) == [BOXES, BELIEFS]


@pytest.mark.parametrize(
    "output",
    [
        np.random.default_rng(0).standard_normal((8, 50, 7)),
        np.random.default_rng(0).random((8, 50, 7)),
        np.maximum(np.random.default_rng(0).standard_normal((400, 64)) * np.linspace(0.05, 2, 64), 0),
        detections() * [0.01, 0.01, 0.01, 0.01, 20, 20, 20],
        detections(n=1),
        detections(n=4, places=1)[:, 0],
        np.where(np.arange(7) < 4, detections(), 0.5),
        np.zeros((0, 5, 7)),
        np.arange(4.0),
    ],
    ids=["numbers", "shares", "features", "alike", "one sample", "few rows", "constant", "empty", "one axis"],
)
def test_numbers_of_one_kind_have_no_parts(output):
    assert parts_of("y", output) == []


def test_a_part_is_cut_out():
    output = detections()
    assert np.array_equal(BELIEFS.of(output), output[:, :, 4:7])
    assert np.array_equal(Part("y", 1, (0, 3)).of(output), output[:, [0, 3]])
