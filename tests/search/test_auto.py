"""The choice across layers for a budget of accuracy, on losses that are known."""

from types import SimpleNamespace

import pytest

from onnxdecomp.ranks.knapsack import Option as Item
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.search import auto
from onnxdecomp.search.auto import Ballot, Search, Weighed, priced
from onnxdecomp.search.evidence import Proportion
from onnxdecomp.search.sensitivity import Curve

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2)
"""Costs of the options of a layer."""


def loss(layer: int, share: float) -> float:
    return 0.001 * (1 + layer) * (share**-4 - 1)


def ballot(layer: int, predicted: float) -> Ballot:
    """Return a layer whose options are predicted to lose `predicted` times what they lose."""
    named = SimpleNamespace(key=str(layer), replacement=lambda share: loss(layer, share))
    items = [Item(0.0, 1.0), *(Item(predicted * loss(layer, share), share) for share in SHARES)]
    return Ballot([(), *(((named, share),) for share in SHARES)], items)


def search_of(n_layers: int, trials: "Known", *, predicted: float = 1.0, steps=()) -> Search:
    keys = [str(layer) for layer in range(n_layers)]
    return Search([ballot(layer, predicted) for layer in range(n_layers)], trials, steps, keys)


class Known:
    """Evaluates by adding up what layers lose; on other samples all lose `elsewhere` times that.

    Attributes:
        n_compared: Models that were evaluated; what is known of one is known.
    """

    looks_are_long, proportion = False, Proportion()

    def __init__(self, elsewhere: float, noise: float, believed: float | None = None) -> None:
        self.elsewhere, self.noise, self.believed = elsewhere, noise, believed
        self._compared: set[tuple[tuple[str, float], ...]] = set()

    @property
    def n_compared(self) -> int:
        return len(self._compared)

    def drop(self, lost: float) -> Drop:
        believed = None if self.believed is None else self.believed * lost
        return Drop(lost, self.noise, 1.0, 1.0 - lost, 1000, smoothed=believed, is_ceiling=True)

    def compared(self, replaced):
        self._compared.add(tuple(sorted(replaced.items())))
        return self.drop(sum(replaced.values())), sum(replaced.values())

    def expected(self, drop, divergence):
        return drop.value

    def confirmed_with(self, replaced):
        return self.drop(self.elsewhere * sum(replaced.values()))


def found(*, max_drop=0.1, predicted=1.0, elsewhere=1.0, noise=0.0, believed=None, n_layers=6):
    trials = Known(elsewhere, noise, believed)
    return search_of(n_layers, trials, predicted=predicted).within_drop(max_drop), trials


@pytest.mark.parametrize("predicted", [0.05, 1.0, 20.0])
def test_a_choice_just_inside_the_budget_takes_few_looks(predicted):
    pick, trials = found(predicted=predicted)
    assert 0.08 < pick.drop.value <= 0.1
    assert trials.n_compared <= 4


@pytest.mark.parametrize("elsewhere", [1.2, 2.0, 5.0])
def test_what_does_not_hold_on_other_samples_gives_way_to_what_does(elsewhere):
    pick, trials = found(elsewhere=elsewhere)
    assert 0.05 < pick.drop.value <= 0.1
    assert trials.n_compared <= 10


@pytest.mark.parametrize("elsewhere", [0.3, 0.6])
def test_what_loses_less_on_other_samples_gives_way_to_what_uses_the_budget(elsewhere):
    pick, trials = found(elsewhere=elsewhere)
    whole = (1 + 1 / elsewhere) / 2 * pick.drop.value  # of as many samples each
    assert 0.08 < whole <= 0.1
    assert trials.n_compared <= 6


def test_the_standard_error_counts_against_a_choice():
    certain, doubtful = (found(noise=noise)[0] for noise in (0.0, 0.05))
    assert doubtful.drop.value < certain.drop.value
    assert doubtful.cost > certain.cost


def test_beliefs_count_where_labels_are_in_doubt_but_never_against_them():
    alone, beside = (found(noise=0.05, believed=believed)[0] for believed in (None, 1.05))
    assert beside.cost < alone.cost
    assert beside.drop.value <= 0.1
    assert found(noise=0.05, believed=3.0)[0].cost == alone.cost
    assert found(noise=0.05, believed=0.1)[0].drop.value <= 0.1


def test_an_answer_that_stays_lost_takes_few_looks(monkeypatch):
    def confirmed_with(self, replaced):
        return self.drop(0.105 if sum(replaced.values()) > 0.004 else 0.0)

    monkeypatch.setattr(Known, "confirmed_with", confirmed_with)
    pick, trials = found()
    assert 0 < sum(pick.replaced.values()) <= 0.004
    assert trials.n_compared <= 12


def test_where_nothing_holds_everything_is_kept():
    assert found(elsewhere=1e6)[0] is None


def test_no_loss_at_all_keeps_everything():
    assert found(max_drop=0.0)[0] is None


def test_a_single_option_is_taken_where_it_holds_only_as_the_mildest(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SHARES", (0.9,))
    pick, _ = found(elsewhere=3.0, n_layers=1, max_drop=0.01)
    assert [option for _, option in pick.parts.values()] == [0.9]


def test_recovery_that_does_harm_is_not_tried_again(monkeypatch):
    tried = []

    def recover(step, replaced, trials):
        tried.append(step)
        factor = {"harms": 2.0, "helps": 0.5}[step]
        return {key: factor * lost for key, lost in replaced.items()}

    monkeypatch.setattr(auto, "recover", recover)
    search = search_of(4, Known(1.0, 0.0), steps=("harms", "helps"))
    picks = [search.at_cost(cost, recovering=True) for cost in (3.0, 2.5)]
    assert tried == ["harms", "helps", "helps"]
    assert [pick.recovered for pick in picks] == [["helps"], ["helps"]]


def factors(monkeypatch, of):
    """Let recovery multiply what each choice loses by a factor of its cost's."""
    monkeypatch.setattr(
        auto,
        "recover",
        lambda step, replaced, trials: {
            key: of(sum(replaced.values())) * lost for key, lost in replaced.items()
        },
    )


def test_what_helped_one_choice_is_taken_for_the_next_without_looking_at_it_unrecovered(monkeypatch):
    factors(monkeypatch, lambda lost: 0.5)
    trials = Known(1.0, 0.0)
    search = search_of(4, trials, steps=("helps",))
    picks = [search.at_cost(cost, recovering=True) for cost in (3.0, 2.5, 2.0)]
    assert [pick.recovered for pick in picks] == 3 * [["helps"]]
    assert trials.n_compared == 4


def test_what_did_not_help_the_choice_itself_is_taken_back(monkeypatch):
    factors(monkeypatch, lambda lost: 2.0 if lost > 0.05 else 0.5)
    search = search_of(6, Known(1.0, 0.0), predicted=20.0, steps=("helps the mild",))
    assert search.at_cost(5.8, recovering=True).recovered
    pick = search.within_drop(0.3)
    assert not pick.recovered
    assert pick.drop.value <= 0.15  # the same choice recovered loses twice that


def test_where_looks_are_long_only_what_is_confirmed_is_recovered(monkeypatch):
    recovered = []

    def recover(step, replaced, trials):
        recovered.append(step)
        return {key: 0.999 * lost for key, lost in replaced.items()}

    monkeypatch.setattr(auto, "recover", recover)
    monkeypatch.setattr(Known, "looks_are_long", True)
    trials = Known(1.0, 0.0)
    pick = search_of(6, trials, predicted=20.0, steps=("helps",)).within_drop(0.1)
    assert pick.recovered == ["helps"]
    assert recovered == ["helps"]
    assert trials.n_compared > 2


def test_options_that_are_expected_to_break_the_outputs_are_none():
    options = [
        SimpleNamespace(error=error, candidate=SimpleNamespace(method=SimpleNamespace(name=name)))
        for name, error in (("svd", 0.1), ("svd", 0.4), ("cp", 0.2))
    ]
    layer = SimpleNamespace(parts=lambda option: ((layer, option),))
    curves = {"svd": Curve([0.1, 0.3], [0.01, float("inf")]), "cp": Curve([0.2], [float("inf")])}
    left = priced(Weighed(layer, options, curves), lambda layer, option: 1.0)
    assert [parts for parts, _ in left] == [layer.parts(options[0])]
