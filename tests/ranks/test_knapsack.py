from itertools import product
from math import fsum, inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.knapsack import budget_at, instance, least_error, total_error
from onnxdecomp.ranks.knapsack import Option, choose, frontier

WITHIN_OPTIMUM = 0.01
"""Share of the optimum's error that a choice may lie above it."""

ROUNDING = 1e-9

STEADY = settings(max_examples=50, deadline=None, derandomize=True)
"""The same cases in every run, and no failure because the machine is busy."""

TIED = st.integers(0, 12).map(float)  # small whole numbers: many ties, exact sums
SPREAD = st.floats(0, 1e6, allow_subnormal=False)


def layers_of(numbers, max_layers=5):
    options = st.lists(st.builds(Option, numbers, numbers), min_size=1, max_size=4)
    return st.lists(options, min_size=1, max_size=max_layers)


def total_cost(layers, choice):
    return fsum(options[index].cost for options, index in zip(layers, choice, strict=True))


def best_of_all(layers, budget):
    """Return the least error of every choice that keeps the budget, infinite when none does."""
    choices = product(*(range(len(options)) for options in layers))
    return min((total_error(layers, c) for c in choices if total_cost(layers, c) <= budget), default=inf)


@STEADY
@given(layers_of(TIED), st.integers(-1, 60))
def test_no_other_choice_within_the_budget_is_better(layers, budget):
    choice = choose(layers, budget)
    assert (inf if choice is None else total_error(layers, choice)) == best_of_all(layers, budget)


@STEADY
@given(layers_of(SPREAD), SPREAD)
def test_the_optimum_is_found_whatever_the_scales(layers, budget):
    choice = choose(layers, budget)
    found = inf if choice is None else total_error(layers, choice)
    assert found == pytest.approx(best_of_all(layers, budget), rel=ROUNDING)


@STEADY
@given(layers_of(SPREAD, max_layers=12), SPREAD)
def test_the_budget_is_kept_and_only_refused_when_the_cheapest_exceed_it(layers, budget):
    choice = choose(layers, budget)
    cheapest = fsum(min(option.cost for option in options) for options in layers)
    assert (choice is None) == (cheapest > budget)
    assert choice is None or total_cost(layers, choice) <= budget


@STEADY
@given(layers_of(SPREAD, max_layers=12), SPREAD, SPREAD)
def test_more_budget_never_gives_more_error(layers, budget, more):
    less, greater = choose(layers, budget), choose(layers, budget + more)
    assert less is None or total_error(layers, greater) <= total_error(layers, less) * (1 + ROUNDING)


@pytest.mark.parametrize("kind", ["decaying", "stairs", "twins", "random"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_sixty_layers_are_chosen_within_a_percent_of_an_exact_solver(kind, share):
    layers = instance(kind, seed=1)
    budget = budget_at(layers, share)
    choice = choose(layers, budget)
    assert total_cost(layers, choice) <= budget
    assert total_error(layers, choice) <= (1 + WITHIN_OPTIMUM) * least_error(layers, budget)


def test_errors_in_proportion_to_cost_are_still_chosen_within_a_percent():
    layers = instance("proportional", seed=1)
    path = frontier(layers)
    budget = budget_at(layers, 0.3)
    relaxed = np.interp(budget, [cost for cost, _, _ in path[::-1]], [error for _, error, _ in path[::-1]])
    assert total_error(layers, choose(layers, budget)) <= (1 + WITHIN_OPTIMUM) * relaxed


@pytest.mark.parametrize("kind", ["decaying", "stairs", "twins", "random"])
def test_errors_of_sixty_layers_fall_from_budget_to_budget(kind):
    layers = instance(kind, seed=2)
    budgets = [budget_at(layers, share) for share in np.linspace(0, 1, 6)]
    errors = np.array([total_error(layers, choose(layers, budget)) for budget in budgets])
    assert np.all(np.diff(errors) < 0)


@STEADY
@given(layers_of(TIED), st.integers(0, 60))
def test_equal_input_gives_an_equal_choice(layers, budget):
    assert choose(layers, budget) == choose([list(options) for options in layers], budget)


@STEADY
@given(layers_of(TIED), st.integers(0, 60))
def test_of_equal_options_the_first_is_taken(layers, budget):
    doubled = [options + options for options in layers]
    assert choose(doubled, budget) == choose(layers, budget)


def test_a_layer_with_one_option_takes_it():
    assert choose([[Option(3.0, 2.0)], [Option(0.0, 9.0), Option(1.0, 1.0)]], 4.0) == [0, 1]


def test_what_costs_nothing_is_taken_at_no_budget():
    assert choose([[Option(2.0, 1.0), Option(3.0, 0.0), Option(1.0, 0.0)]] * 3, 0.0) == [2, 2, 2]


def test_of_equal_errors_the_cheapest_is_taken_where_money_is_no_object():
    assert choose([[Option(1.0, 7.0), Option(1.0, 2.0)], [Option(0.0, 1.0)]], inf) == [1, 0]


@pytest.mark.parametrize(("budget", "choice"), [(0.1 + 0.2, [1, 1]), (np.nextafter(0.1 + 0.2, 0), [0, 1])])
def test_not_even_rounding_exceeds_the_budget(budget, choice):
    layers = [[Option(1.0, 0.0), Option(0.0, 0.1)], [Option(2.0, 0.0), Option(0.0, 0.2)]]
    assert choose(layers, budget) == choice


def test_no_layers_need_no_budget():
    assert choose([], 0.0) == []
    assert choose([], -1.0) is None


def test_an_infinite_error_is_no_option():
    assert choose([[Option(inf, 0.0), Option(1.0, 5.0)]], 5.0) == [1]
    assert choose([[Option(inf, 0.0), Option(1.0, 5.0)]], 4.0) is None
    assert choose([[Option(inf, 0.0)]], 4.0) is None


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([[Option(0.0, 0.0)], []], "Layer 1 .* no option"),
        ([[Option(-1.0, 0.0)]], "Layer 0 .* negative"),
        ([[Option(0.0, -1.0)]], "Layer 0 .* negative"),
        ([[Option(nan, 0.0)]], "Layer 0 .* NaN"),
        ([[Option(0.0, nan)]], "Layer 0 .* NaN"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(layers, said):
    with pytest.raises(ValueError, match=said):
        choose(layers, 1.0)


def test_a_budget_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="budget"):
        choose([[Option(0.0, 0.0)]], nan)


@STEADY
@given(layers_of(TIED))
def test_the_frontier_leads_from_the_least_error_to_the_least_cost(layers):
    path = frontier(layers)
    costs, errors = ([point[axis] for point in path] for axis in (0, 1))
    assert (costs, errors) == (sorted(costs, reverse=True), sorted(errors))
    assert errors[0] == sum(min(option.error for option in options) for options in layers)
    assert costs[-1] == sum(min(option.cost for option in options) for options in layers)


@STEADY
@given(layers_of(TIED))
def test_points_of_the_frontier_are_what_they_say_and_cannot_be_beaten(layers):
    path = frontier(layers)
    assert [(cost, error) for cost, error, _ in path] == [
        (total_cost(layers, choice), total_error(layers, choice)) for _, _, choice in path
    ]
    assert [error for _, error, _ in path] == [best_of_all(layers, cost) for cost, _, _ in path]


@STEADY
@given(layers_of(TIED))
def test_along_the_frontier_saved_cost_gets_more_and_more_expensive(layers):
    path = np.array([point[:2] for point in frontier(layers)])
    saved, added = -np.diff(path[:, 0]), np.diff(path[:, 1])
    assert np.all(np.diff(added / saved) >= -ROUNDING)


def test_a_layer_that_is_no_option_has_no_frontier():
    assert frontier([[Option(inf, 1.0)]]) == []
