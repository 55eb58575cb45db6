import numpy as np
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.layer import Geometry, Layer
from onnxdecomp.methods import find_methods
from onnxdecomp.ranks import parse_policy
from onnxdecomp.ranks.search import equal_loss_ranks
from onnxdecomp.ranks.study import Candidate, Measured, Study

MAX_ERROR = 0.2
UNIT = Geometry((1, 1), (1, 1), (1, 1), (1, 1), output_padding=(0, 0))


def low_rank_weight(shape, rank, noise, seed=0):
    """Make a weight whose output channels span few directions."""
    rng = np.random.default_rng(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rank)
    return (signal + noise * rng.standard_normal((rows, columns))).reshape(shape)


def study(
    method="channel-svd", shape=(64, 48, 3, 3), *, rank=16, noise=0.05, block=8, measure=None, geometry=UNIT
):
    layer = Layer("y", "Conv", shape, geometry, (1, 14, 14))
    usable = tuple(m for m in find_methods(method) if m.refusal(layer) is None)
    weight = low_rank_weight(shape, rank, noise)
    return Study(layer, weight, usable, block, asked_for=method != "auto", measure=measure)


@pytest.mark.parametrize("method", ["channel-svd", "spatial-svd", "tucker2", "tt", "auto"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_ratio_stays_within_its_share_of_the_weights(method, ratio):
    under_study = study(method)
    chosen = parse_policy(f"ratio:{ratio}", MAX_ERROR).choose(under_study)
    assert isinstance(chosen, Candidate)
    assert chosen.n_params <= ratio * under_study.layer.n_params
    assert chosen.n_macs < under_study.layer.n_macs


@pytest.mark.parametrize("method", ["channel-svd", "spatial-svd", "tucker2", "tt"])
def test_ratio_uses_most_of_its_share(method):
    under_study = study(method, noise=1.0)
    chosen = parse_policy("ratio:0.5", MAX_ERROR).choose(under_study)
    assert chosen.n_params > 0.35 * under_study.layer.n_params


def test_auto_method_is_never_worse_than_a_named_one():
    best = parse_policy("ratio:0.5", MAX_ERROR).choose(study("auto"))
    named = parse_policy("ratio:0.5", MAX_ERROR).choose(study("channel-svd"))
    assert best.error <= named.error


@pytest.mark.parametrize("method", ["channel-svd", "tucker2", "tt", "spatial-svd"])
@pytest.mark.parametrize("energy", [0.7, 0.9])
def test_energy_keeps_its_share(method, energy):
    chosen = parse_policy(f"energy:{energy}", MAX_ERROR).choose(study(method, rank=6, noise=0.2))
    assert isinstance(chosen, Candidate)
    assert 1 - chosen.error**2 >= energy - 1e-12


def test_energy_needs_no_more_than_the_planted_rank():
    chosen = parse_policy("energy:0.95", MAX_ERROR).choose(study("channel-svd", rank=16, noise=0.01))
    assert chosen.ranks == (16,)


def test_energy_keeps_a_layer_without_slack():
    reason = parse_policy("energy:0.999", MAX_ERROR).choose(study("channel-svd", rank=48, noise=1.0))
    assert reason == "no method keeps 0.999 of the energy with fewer weights and MACs"


def test_ranks_are_multiples_of_the_channel_block():
    chosen = parse_policy("ratio:0.5", MAX_ERROR).choose(study("channel-svd", block=16))
    assert chosen.ranks[0] % 16 == 0


def test_evbmf_finds_the_planted_rank_and_snaps_it_up():
    chosen = parse_policy("evbmf", MAX_ERROR).choose(
        study("channel-svd/output", rank=13, noise=0.05, block=8)
    )
    assert chosen.ranks == (16,)


def test_weakened_evbmf_keeps_more():
    plain = parse_policy("evbmf", MAX_ERROR).choose(study("channel-svd/output", rank=13))
    weak = parse_policy("evbmf:0.6", MAX_ERROR).choose(study("channel-svd/output", rank=13))
    assert weak.ranks > plain.ranks


def test_evbmf_says_when_everything_is_noise():
    reason = parse_policy("evbmf", MAX_ERROR).choose(study("channel-svd/output", rank=1, noise=1e3))
    assert "takes the whole weight for noise" in reason


def test_a_number_is_taken_as_it_is():
    assert parse_policy("13", MAX_ERROR).choose(study("channel-svd/output")).ranks == (13,)


def test_a_number_that_does_not_shrink_the_layer_keeps_it():
    assert "no method makes this layer smaller" in parse_policy("64", MAX_ERROR).choose(
        study("channel-svd/output")
    )


def test_a_number_above_the_bound_keeps_the_layer():
    assert "above the largest rank" in parse_policy("65", MAX_ERROR).choose(study("channel-svd/output"))


def test_full_rank_is_exact_and_may_be_larger():
    under_study = study("channel-svd/output")
    chosen = parse_policy("full", MAX_ERROR).choose(under_study)
    assert chosen.error < 1e-7
    assert chosen.n_params > under_study.layer.n_params


def timer(speedup):
    def measure(layer, candidates):
        return [Measured(1.0, 1.0 / speedup, speedup, speedup - 0.05, speedup + 0.05) for _ in candidates]

    return measure


def test_auto_takes_a_chain_that_is_measured_to_be_faster():
    chosen = parse_policy("auto", MAX_ERROR).choose(study("auto", measure=timer(1.5)))
    assert isinstance(chosen, Candidate)
    assert chosen.error <= MAX_ERROR
    assert chosen.measured.chain_ms == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("speedup", [0.8, 1.04])
def test_auto_keeps_a_layer_whose_gain_is_no_larger_than_the_noise(speedup):
    reason = parse_policy("auto", MAX_ERROR).choose(study("auto", measure=timer(speedup)))
    assert reason.startswith("not faster: ")


def test_auto_keeps_what_it_cannot_time():
    assert "nothing can be timed" in parse_policy("auto", MAX_ERROR).choose(study("auto"))


def test_a_strided_layer_never_gets_more_macs():
    strided = Geometry((2, 2), (1, 1), (1, 1), (1, 1), output_padding=(0, 0))
    under_study = study("tucker2", rank=40, noise=1.0, geometry=strided)
    chosen = parse_policy("ratio:0.95", MAX_ERROR).choose(under_study)
    assert isinstance(chosen, str) or chosen.n_macs < under_study.layer.n_macs


def test_equal_loss_ranks_lose_at_most_the_share():
    under_study = study("tt", noise=1.0)
    (method,) = under_study.methods
    analysis = under_study.analysis(method)
    ranks = equal_loss_ranks(analysis, 0.1)
    lost = [s.tail(r) / s.energy for s, r in zip(analysis.spectra, ranks, strict=True)]
    assert max(lost) <= 0.1


def test_a_layers_result_does_not_depend_on_what_was_studied_before():
    alone, after = study("auto"), study("auto")
    parse_policy("energy:0.9", MAX_ERROR).choose(after)
    first = parse_policy("ratio:0.5", MAX_ERROR).choose(alone)
    second = parse_policy("ratio:0.5", MAX_ERROR).choose(after)
    assert (first.method, first.ranks, first.error) == (second.method, second.ranks, second.error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rato:0.5", "did you mean 'ratio'"),
        ("ratio:2", "between 0 and 1"),
        ("ratio:", "between 0 and 1"),
        ("energy:x", "between 0 and 1"),
        ("evbmf:0", "weakening factor"),
        ("0", "1 or more"),
        ("-3", "1 or more"),
        ("none:1", "takes no argument"),
        ("full:1", "takes no argument"),
        ("auto:1", "takes no argument"),
        ("nan", "unknown rank"),
    ],
)
def test_a_rank_that_makes_no_sense_is_refused_with_a_hint(text, message):
    with pytest.raises(UsageError, match=message):
        parse_policy(text, MAX_ERROR)


def test_an_analysis_is_made_again_only_for_larger_ranks():
    under_study = study("channel-svd/output")
    (method,) = under_study.methods
    wide = under_study.analysis(method, (32,))
    assert under_study.analysis(method, (8,)) is wide
    assert under_study.analysis(method, (40,)) is not wide
    whole = under_study.analysis(method)
    assert under_study.analysis(method, (64,)) is whole
