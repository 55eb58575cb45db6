"""Fine-tuning inside a conversion: how far is decomposed for it, and what is refused."""

import numpy as np
import onnx
import pytest

from onnxdecomp import convert, decomposing
from onnxdecomp.config import Config
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.report.outcome import BeforeAfter, Tuning
from onnxdecomp.search.trial import Trials
from onnxdecomp.tuned import SHARES, shares
from tests.graph.models import normal, parse
from tests.networks import network
from tests.timers import stop_the_clock

BUDGET = 0.05
"""Noise over signal that may be lost."""


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch):
    stop_the_clock(monkeypatch)
    monkeypatch.setattr("onnxdecomp.search.network.rank_step", lambda config: 8)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    mixed = np.random.default_rng(0).standard_normal((16, 16)) * np.geomspace(1, 0.1, 16)
    np.savez(path, x=np.einsum("ij,njhw->nihw", mixed, normal(256, 16, 12, 12)).astype(np.float32))
    return str(path)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.onnx"
    onnx.save(network(), path)
    return path


def told(*notes: str) -> Tuning:
    return Tuning(3, 300, "mse", BeforeAfter(0.2, 0.1), 10, 8, notes)


@pytest.fixture
def training(monkeypatch):
    """Let training change nothing, and hold what it is believed to lose; return the budgets before it."""
    budgets = []

    def use(holds_at):
        real = decomposing.goal_of_ranks
        monkeypatch.setattr(
            decomposing, "goal_of_ranks", lambda own: budgets.append(own.max_drop) or real(own)
        )
        monkeypatch.setattr(
            decomposing, "tuned", lambda model, staged, *others: (staged, told("trained as well as could be"))
        )
        monkeypatch.setattr(Trials, "holds", lambda *seen: budgets[-1] <= holds_at * BUDGET * (1 + 1e-9))
        return budgets

    return use


def searched(source, calibration, **options):
    return convert(source, None, calibration=calibration, metric="sqnr", cache="none", **options)


@pytest.mark.parametrize("holds_at", SHARES)
def test_the_strongest_decomposition_that_training_brings_back_is_taken(
    training, source, calibration, holds_at
):
    budgets = training(holds_at)
    report = searched(source, calibration, max_drop=BUDGET, finetune=10)
    tried = [share * BUDGET for share in SHARES if share >= holds_at]
    assert budgets[1:] == pytest.approx(tried)
    assert report.finetuned == told("trained as well as could be")
    assert "trained as well as could be" in report.notes


def test_where_training_brings_nothing_back_the_untrained_choice_stays(training, source, calibration):
    training(0.5)
    report = searched(source, calibration, max_drop=BUDGET, finetune=10)
    plain = searched(source, calibration, max_drop=BUDGET)
    assert report.finetuned is None
    assert report.proto == plain.proto
    assert [stage.name for stage in report.stages].count("finetune") == 1


def test_a_trained_network_is_nearer_to_the_original(source, calibration, tmp_path):
    options = {
        "rank": "ratio:0.15",
        "metric": "sqnr",
        "verify": "none",
        "allow_slower": True,
        "calibration": calibration,
    }
    report = convert(source, tmp_path / "out.onnx", **options, finetune=60)
    plain = convert(source, None, **options)
    assert 0 < report.finetuned.best_step <= 60
    assert 0 < report.finetuned.held_out.after < report.finetuned.held_out.before
    assert report.accuracy.drop < plain.accuracy.drop
    assert [node.name for node in onnx.load(tmp_path / "out.onnx").graph.node] == [
        node.name for node in plain.proto.graph.node
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"finetune": 10}, SHARES),
        ({"finetune": 10, "rank": "ratio:0.5"}, (1.0,)),
        ({"finetune": 10, "target_macs": 0.5}, (1.0,)),
        ({}, (1.0,)),
    ],
)
def test_only_a_search_within_a_budget_goes_further_for_training(options, expected):
    assert shares(Config(calibration="x.npz", **options)) == expected


def test_without_torch_the_extra_is_named_before_any_work(monkeypatch, source, calibration):
    monkeypatch.setattr("onnxdecomp.finetuning.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"onnxdecomp\[finetune\]"):
        searched(source, calibration, finetune=10)


def test_operators_that_cannot_be_trained_are_named_before_any_work(tmp_path, calibration):
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, w) b = RandomNormalLike(a) y = Add(a, b) }",
        {"w": normal(4, 4)},
    )
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(ModelError, match="RandomNormalLike"):
        convert(tmp_path / "in.onnx", tmp_path / "out.onnx", calibration="none.npz", finetune=10)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"finetune": 0, "calibration": "x.npz"}, "finetune is 0"), ({"finetune": 5}, "--calib")],
)
def test_training_needs_steps_and_samples(source, options, said):
    with pytest.raises(UsageError, match=said):
        convert(source, None, **options)
