"""Losses are what their formulas say."""

import numpy as np
import pytest
import torch

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime.divergence import Divergence
from onnxdecomp.tune.losses import CrossEntropy, KullbackLeibler, MeanSquare, Scores, scores_of
from onnxdecomp.tune.objective import build_objective
from onnxdecomp.tune.settings import Settings

OURS, THEIRS = (np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32) for seed in (0, 1))
ROUNDING = 1e-5


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def tensors(array: np.ndarray) -> dict[str, torch.Tensor]:
    return {"y": torch.from_numpy(array)}


def objective(loss: tuple[str, ...], reference: np.ndarray = THEIRS, *, has_teacher: bool = True):
    settings = Settings(loss=loss, temperature=3.0)
    return build_objective(settings, [{"y": reference}], ["y"], (), has_teacher=has_teacher)


def value(term, ours: np.ndarray, theirs: np.ndarray, labels=None) -> float:
    return float(term(tensors(ours), tensors(theirs), labels))


def test_kl_at_temperature_one_is_the_divergence_that_the_search_uses() -> None:
    found = value(KullbackLeibler(Scores("y", 1, False), 1.0), OURS, THEIRS)
    assert found == pytest.approx(Divergence({"y": THEIRS}).of({"y": OURS}), rel=ROUNDING)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_of_probabilities_is_that_of_the_scores_they_come_from(temperature: float) -> None:
    of_scores = value(KullbackLeibler(Scores("y", 1, False), temperature), OURS, THEIRS)
    of_rows = value(KullbackLeibler(Scores("y", 1, True), temperature), softmax(OURS), softmax(THEIRS))
    assert of_rows == pytest.approx(of_scores, rel=ROUNDING)


def test_kl_has_no_share_for_classes_that_the_teacher_rules_out() -> None:
    ruled = THEIRS.copy()
    ruled[:, 2] = -np.inf
    ours = torch.from_numpy(OURS).requires_grad_()
    loss = KullbackLeibler(Scores("y", 1, False), 2.0)({"y": ours}, tensors(ruled), None)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(ours.grad).all())


def test_mean_square_is_noise_over_signal() -> None:
    found = value(MeanSquare({"y": float(np.square(THEIRS).mean())}), OURS, THEIRS)
    assert found == pytest.approx(np.square(OURS - THEIRS).sum() / np.square(THEIRS).sum(), rel=ROUNDING)


def test_cross_entropy_counts_classes_on_the_last_axis_of_three() -> None:
    scores = np.stack([OURS, THEIRS])  # (2, 6, 5)
    labels = np.arange(12).reshape(2, 6) % 5
    found = value(CrossEntropy(scores_of({"y": scores}, "kl")), scores, scores, torch.from_numpy(labels))
    rows = softmax(scores.reshape(-1, 5))
    assert found == pytest.approx(-np.log(rows[np.arange(12), labels.reshape(-1)]).mean(), rel=ROUNDING)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3, 4, 5], "go from 0 to 5 and the model has 5 classes"),
        ([0, 1, 2, 3, 4, -2], "go from -2 to 4"),
        ([0, 1, 2], r"shape \(6,\)"),
        ([0.0, 1, 2, 3, 4, 4], "float"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        value(CrossEntropy(Scores("y", 1, False)), OURS, THEIRS, torch.tensor(labels))


@pytest.mark.parametrize(
    ("reference", "title"),
    [(THEIRS, "kl"), (softmax(THEIRS), "kl"), (THEIRS[:, :1], "mse"), (THEIRS[:, None, None], "mse")],
    ids=["scores", "probabilities", "one number", "an image"],
)
def test_auto_suits_the_outputs(reference: np.ndarray, title: str) -> None:
    assert objective(("auto",), reference).title == title


def test_terms_are_added_by_weight() -> None:
    both = value(objective(("kl:0.7", "mse:0.3")), OURS, THEIRS)
    parts = [value(objective((name,)), OURS, THEIRS) for name in ("kl", "mse")]
    assert both == pytest.approx(0.7 * parts[0] + 0.3 * parts[1], rel=ROUNDING)


@pytest.mark.parametrize(
    ("loss", "reference", "has_teacher", "message"),
    [
        ("kl", THEIRS[:, :1], True, r"'y' \(6, 1\) has no axis of two or more: use mse"),
        ("mse", THEIRS.argmax(1), True, "no floating point"),
        ("kl", THEIRS, False, "give it with --teacher"),
    ],
)
def test_a_loss_that_does_not_suit_is_refused(
    loss: str, reference: np.ndarray, has_teacher: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        objective((loss,), reference, has_teacher=has_teacher)


def test_a_teacher_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        objective(("mse",), np.full((6, 5), np.nan, np.float32))
