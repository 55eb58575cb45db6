"""The least cost that keeps a limit, found with few looks."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.search.limit import CLOSE, RESOLUTION, STRIDE, Look, next_budget

LEAST, MOST = 1.0, 50.0


def found(lost, predicted, limit, max_looks=30) -> tuple[list[Look], float | None]:
    """Return all looks at a loss, and the least cost that held."""
    looks: list[Look] = []
    for _ in range(max_looks):
        budget = next_budget(looks, predicted, LEAST, MOST, limit)
        if budget is None:
            break
        looks.append(Look(budget, budget, predicted(budget), lost(budget)))
    return looks, min((look.cost for look in looks if look.lost <= limit), default=None)


def power(factor: float, exponent: float):
    return lambda cost: factor * cost**-exponent


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_a_prediction_of_the_right_form_takes_three_looks(factor):
    looks, cost = found(power(factor, 5), power(1.0, 5), factor * 3.0**-5)
    assert len(looks) <= 3
    assert 3.0 <= cost < 3.0 * 1.05


@pytest.mark.parametrize(("true", "guessed"), [(7, 1), (5, 2), (1, 3), (2, 5)])
def test_looks_on_both_sides_tell_the_form(true, guessed):
    looks, cost = found(power(1.0, true), power(1.0, guessed), 3.0**-true)
    assert len(looks) <= 7
    assert 3.0**-true * CLOSE <= cost**-true <= 3.0**-true


def test_a_look_that_kept_the_limit_is_followed_by_one_nearby_where_that_should_use_it_up():
    budget = next_budget([Look(10.0, 10.0, 1.0, 0.8)], power(1e4, 4), LEAST, MOST, 1.0)
    assert 9.5 < budget < 9.8


@settings(deadline=None)
@given(st.floats(0.5, 8), st.floats(0.5, 8), st.floats(1.5, 40), st.floats(0.01, 100))
def test_a_prediction_of_another_form_still_ends_near_the_limit(true, guessed, place, factor):
    lost = power(factor, true)
    limit = lost(place)
    looks, cost = found(lost, power(1.0, guessed), limit)
    assert cost is not None
    assert lost(cost) >= CLOSE * limit or any(
        look.lost > limit and cost <= RESOLUTION * look.budget for look in looks
    )


def test_where_nothing_holds_the_looks_climb_to_the_original():
    looks, cost = found(lambda cost: inf, power(1.0, 2), 0.1)
    assert cost is None
    assert MOST / looks[-1].budget < RESOLUTION * 1.01


@pytest.mark.parametrize("least_lost", [0.2, inf])
def test_where_the_mildest_choice_fails_and_no_budget_finds_a_milder_one_the_looks_end(least_lost):
    looks: list[Look] = []
    while (budget := next_budget(looks, power(1.0, 2), LEAST, MOST, 0.1)) is not None:
        cost = min(budget, 0.9 * MOST)
        looks.append(Look(budget, cost, cost**-2, least_lost))
        assert len(looks) < 30
    assert looks[-1].budget > 0.9 * MOST


def test_where_everything_holds_the_looks_fall_to_the_cheapest():
    _, cost = found(lambda cost: 0.0, power(1.0, 2), 0.1)
    assert cost == pytest.approx(LEAST, rel=0.03)


@pytest.mark.parametrize("lost", [0.0, 1e-9])
def test_of_a_look_far_inside_the_limit_no_more_is_concluded_than_a_stride(lost):
    predicted = power(1.0, 2)
    budget = next_budget([Look(30.0, 30.0, predicted(30.0), lost)], predicted, LEAST, MOST, 0.1)
    assert predicted(budget) == pytest.approx(STRIDE * predicted(30.0), rel=0.01)


def test_what_holds_just_inside_the_limit_is_enough():
    assert next_budget([Look(9.0, 8.5, 1.0, 0.9)], power(1.0, 2), LEAST, MOST, 1.0) is None


def test_no_loss_at_all_can_be_asked_for():
    looks, cost = found(lambda cost: 0.0 if cost > 10 else 0.1, power(1.0, 2), 0.0)
    assert 10 < cost < 10.5
    assert len(looks) < 25
