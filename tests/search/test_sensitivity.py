from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.search.options import LayerOptions, typical_of
from onnxdecomp.search.sensitivity import Curve, best_fit, curves_of

numbers = st.floats(1e-4, 1.0)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5, unique_by=lambda p: p[0]), numbers, numbers
)
def test_more_error_never_means_less_divergence(points, a, b):
    errors, divergences = zip(*points, strict=True)
    curve = Curve(errors, divergences)
    low, high = sorted((a, b))
    assert curve(low) <= curve(high) * (1 + 1e-9)


def test_the_curve_goes_through_what_was_measured():
    curve = Curve([0.1, 0.4, 0.2], [0.01, 0.5, 0.03])
    assert [curve(e) for e in (0.1, 0.2, 0.4)] == pytest.approx([0.01, 0.03, 0.5])


def test_beyond_what_was_measured_the_divergence_grows_with_the_square():
    curve = Curve([0.1, 0.2], [0.01, 0.03])
    assert curve(0.05) == pytest.approx(0.01 / 4)
    assert curve(0.4) == pytest.approx(0.03 * 4)


def test_keeping_the_layer_costs_nothing():
    assert Curve([0.1], [0.2])(0.0) == 0.0


def test_a_layer_the_output_does_not_depend_on_costs_next_to_nothing():
    assert Curve([0.1, 0.3], [0.0, 0.0])(0.5) < 1e-9
    assert np.isfinite(Curve([0.1], [0.0])(1.0))


def test_a_single_measurement_grows_with_the_slope_that_is_given():
    assert Curve([0.1], [0.01], 3.0)(0.2) == pytest.approx(0.08)


def options_of(*named: tuple[str, float]) -> LayerOptions:
    """Return a layer with options of these methods and errors, cheapest last."""
    options = [
        SimpleNamespace(candidate=SimpleNamespace(method=SimpleNamespace(name=name)), error=error)
        for name, error in named
    ]
    return cast("LayerOptions", SimpleNamespace(options={"fit": options}))


def test_every_method_has_a_curve_of_its_own_and_a_lesser_one_the_slope_of_the_first():
    layer = options_of(("svd", 0.1), ("cp", 0.1), ("svd", 0.2), ("svd", 0.3), ("svd", 0.4), ("cp", 0.4))
    times = {"svd": 1.0, "cp": 0.2}
    asked = []

    def diverge(layer, option):
        asked.append(option)
        return times[option.candidate.method.name] * option.error**3

    curves = curves_of(layer, "fit", diverge, n_probes=3)
    assert len(asked) == 4  # three of the first method, one of the other
    assert layer.options["fit"][typical_of(6)] in asked
    for name, scale in times.items():
        assert curves[name](0.25) == pytest.approx(scale * 0.25**3, rel=0.1)


@pytest.mark.parametrize("broken_from", [0.0, 0.25])
def test_a_method_that_breaks_the_outputs_leaves_the_curves_of_others_alone(broken_from):
    layer = options_of(("svd", 0.1), ("cp", 0.1), ("svd", 0.2), ("svd", 0.3), ("svd", 0.4), ("cp", 0.4))

    def diverge(layer, option):
        is_broken = option.candidate.method.name == "svd" and option.error > broken_from
        return float("inf") if is_broken else option.error**2

    curves = curves_of(layer, "fit", diverge, n_probes=3)
    assert curves["svd"](0.4) == float("inf")
    assert curves["cp"](0.25) == pytest.approx(0.25**2)


def test_the_fit_is_chosen_at_an_option_in_the_cheaper_half():
    layer = cast(
        "LayerOptions",
        SimpleNamespace(options={"a": [1.0, 2.0, 3.0, 4.0], "b": [9.0, 9.0, 2.0, 9.0]}),
    )
    assert best_fit(layer, lambda _, option: option) == "b"


def test_a_single_fit_is_not_looked_at():
    layer = cast("LayerOptions", SimpleNamespace(options={"a": [1.0]}))
    assert best_fit(layer, lambda *_: pytest.fail("looked at")) == "a"
