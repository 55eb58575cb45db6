from math import inf

import numpy as np
import pytest

from onnxdecomp.runtime.evaluate import METRICS, Metric
from onnxdecomp.runtime.judge import Judge
from onnxdecomp.runtime.jury import Jury
from onnxdecomp.runtime.suited import suited_metrics

N_SAMPLES, N_CLASSES = 40, 5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


SCORES, BOXES = normal(N_SAMPLES, N_CLASSES), normal(N_SAMPLES, 6, 4, seed=1)
REFERENCE = {"scores": SCORES, "boxes": BOXES}
METRIC_OF = {"scores": METRICS["agreement"], "boxes": METRICS["sqnr"]}


def moved(scores=0.0, boxes=0.0):
    """Return the outputs with noise of these levels."""
    return {
        "scores": SCORES + scores * normal(*SCORES.shape, seed=2),
        "boxes": BOXES + boxes * normal(*BOXES.shape, seed=3),
    }


@pytest.mark.parametrize(("levels", "worst"), [((0.0, 0.1), "boxes"), ((2.0, 0.1), "scores")])
def test_the_output_that_loses_most_counts(levels, worst):
    jury, outputs = Jury(METRIC_OF, REFERENCE), moved(*levels)
    lost = jury.drop(outputs)
    alone = Judge(METRIC_OF[worst], {worst: REFERENCE[worst]}, None).drop({worst: outputs[worst]})
    assert lost.output == worst
    assert (lost.value, lost.standard_error) == (alone.value, alone.standard_error)
    assert jury.drop_of(worst, outputs) == lost


def test_no_output_loses_more_than_the_jury_says_of_two_parts_together():
    halves = [np.arange(start, N_SAMPLES, 2) for start in (0, 1)]
    for levels in ((0.3, 0.05), (0.0, 0.3), (2.0, 0.3)):
        outputs = moved(*levels)
        drops = []
        for rows in halves:
            part = {name: array[rows] for name, array in REFERENCE.items()}
            drops.append(Jury(METRIC_OF, part).drop({name: array[rows] for name, array in outputs.items()}))
        whole = Jury(METRIC_OF, REFERENCE).drop(outputs)
        assert drops[0].pooled(drops[1]).value >= 0.9 * whole.value


def test_how_far_outputs_move_adds_up():
    outputs = moved(0.3, 0.1)
    alone = [
        Judge(METRIC_OF[name], {name: REFERENCE[name]}, None).divergence({name: outputs[name]})
        for name in REFERENCE
    ]
    assert Jury(METRIC_OF, REFERENCE).divergence(outputs) == pytest.approx(sum(alone))
    assert min(alone) > 0


def test_an_output_that_is_not_compared_has_no_say():
    jury = Jury({"boxes": METRICS["sqnr"], "other": METRICS["sqnr"]}, {**REFERENCE, "other": BOXES})
    outputs = {**moved(scores=3.0), "other": BOXES}
    assert jury.drop(outputs).value == jury.divergence(outputs) == 0.0


@pytest.mark.parametrize("changed", [{"boxes": BOXES[:, :3]}, {}], ids=["other rows", "missing"])
def test_an_output_of_another_shape_is_lost(changed):
    jury = Jury(METRIC_OF, REFERENCE)
    outputs = {"scores": SCORES, **changed}
    assert (jury.drop(outputs).value, jury.drop(outputs).output) == (inf, "boxes")
    assert jury.divergence(outputs) == inf


def test_a_number_for_each_sample_that_is_missing_is_lost():
    numbers = {"one": normal(N_SAMPLES), "other": normal(N_SAMPLES, seed=1)}
    jury = Jury(dict.fromkeys(numbers, METRICS["sqnr"]), numbers)
    assert jury.divergence({"one": numbers["one"]}) == jury.drop({"one": numbers["one"]}).value == inf


def test_a_single_metric_sees_all_outputs_and_names_none():
    def score(outputs, labels, reference):
        return -float(np.abs(outputs["boxes"] - reference["boxes"]).mean())

    jury = Jury({"scores": Metric("own:score", score)}, REFERENCE)
    lost = jury.drop(moved(boxes=0.1))
    assert lost.value > 0
    assert lost.output == ""


@pytest.mark.parametrize(
    ("metrics", "n_answers"),
    [
        (METRIC_OF, N_SAMPLES),
        ({"scores": METRICS["agreement"], "boxes": METRICS["agreement"]}, N_SAMPLES),
        ({"boxes": METRICS["agreement"], "scores": METRICS["sqnr"]}, 6 * N_SAMPLES),
        ({"scores": METRICS["r2"], "boxes": METRICS["sqnr"]}, None),
        ({"length": METRICS["agreement"], "scores": METRICS["agreement"]}, N_SAMPLES),
        ({"found": METRICS["agreement"], "boxes": METRICS["sqnr"]}, 3 * N_SAMPLES),
        ({"length": METRICS["agreement"], "boxes": METRICS["sqnr"]}, None),
    ],
)
def test_answers_are_counted_where_choices_are_compared(metrics, n_answers):
    whole = {"length": np.full(N_SAMPLES, 80), "found": np.arange(3 * N_SAMPLES).reshape(N_SAMPLES, 3)}
    assert Jury(metrics, REFERENCE | whole).n_answers == n_answers


def test_what_is_small_next_to_boxes_counts_by_itself():
    rng = np.random.default_rng(0)
    boxes, beliefs = 100 + 30 * rng.standard_normal((8, 50, 4)), 0.02 * rng.random((8, 50, 3))
    reference = {"y": np.concatenate([boxes, beliefs], axis=2)}
    metrics = suited_metrics(reference, None)
    assert {name: one.name for name, one in metrics.items()} == {"y[:, :, 0:4]": "r2", "y[:, :, 4:7]": "r2"}
    jury = Jury(metrics, reference)
    assert jury.drop(reference).value == jury.divergence(reference) == 0.0
    lost = {"y": np.concatenate([boxes, np.full_like(beliefs, beliefs.mean())], axis=2)}
    drop = jury.drop(lost)
    assert drop.output == "y[:, :, 4:7]"
    assert drop.value == pytest.approx(1.0, abs=0.2)
    assert jury.divergence(lost) == pytest.approx(drop.value)
    for other in ({"y": reference["y"][..., :6]}, {}):
        assert jury.drop(other).value == jury.divergence(other) == inf
