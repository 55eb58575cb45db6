from dataclasses import replace
from math import inf, nan

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Chain
from onnxdecomp.runtime import compare
from onnxdecomp.runtime.compare import SAME_RESULT, output_error, verify_models
from onnxdecomp.runtime.compare_chain import check_shape, verify_chain
from tests.graph.models import normal, parse

GEOMETRY = Geometry((2, 1), (1, 2), (0, 1), (1, 2), output_padding=(0, 0))
LAYER = Layer("k", "Conv", (6, 4, 3, 3), GEOMETRY, (1, 20, 19))


def spatial_chain(layer: Layer, rank: int = 5) -> Chain:
    """Return a random chain of a vertical and a horizontal step."""
    out_channels, in_channels, rows, columns = layer.weight_shape
    specs = (
        StepSpec((rank, in_channels, rows, 1), layer.geometry.on_axes((0,), 1)),
        StepSpec((out_channels, rank, 1, columns), layer.geometry.on_axes((1,), 1)),
    )
    return Chain(layer, "spatial", (rank,), specs, tuple(normal(*s.weight_shape) for s in specs))


def check(chain: Chain, dtype=np.float32):
    weight, bias = normal(*chain.layer.weight_shape), normal(chain.layer.out_channels)
    return verify_chain(weight, bias, chain, dtype)


MATRIX = Layer("k", "Gemm", (6, 4), Geometry(), (3,))


def matrix_chain(layer: Layer) -> Chain:
    specs = (StepSpec((2, 4), Geometry()), StepSpec((6, 2), Geometry()))
    return Chain(layer, "svd", (2,), specs, (normal(2, 4), normal(6, 2)))


@pytest.mark.parametrize(
    ("chain", "dtype"),
    [
        (spatial_chain(LAYER), np.float16),
        (spatial_chain(LAYER), np.float32),
        (matrix_chain(MATRIX), np.float16),
        (matrix_chain(MATRIX), np.float64),
    ],
)
def test_a_right_chain_passes_in_its_own_type(chain, dtype):
    result = check(chain, dtype)
    assert (result.passed, result.tolerance) == (True, SAME_RESULT[np.dtype(dtype).name])
    assert result.rel_error <= result.tolerance
    assert result.output_error > 0.1  # its weights are random and have nothing to do with the layer's


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float64])
def test_a_type_without_a_convolution_is_checked_in_float32(dtype):
    result = check(spatial_chain(LAYER), dtype)
    assert (result.passed, result.tolerance) == (True, SAME_RESULT["float32"])


def test_output_error_is_zero_for_the_layer_itself():
    weight = normal(*LAYER.weight_shape)
    chain = Chain(LAYER, "itself", (1,), (LAYER.spec,), (weight,))
    assert verify_chain(weight, None, chain).output_error < SAME_RESULT["float32"]


def with_step(chain: Chain, index: int, **changes) -> Chain:
    specs = list(chain.specs)
    specs[index] = replace(specs[index], geometry=replace(specs[index].geometry, **changes))
    return replace(chain, specs=tuple(specs))


@pytest.mark.parametrize(
    ("index", "changes"),
    [
        (1, {"dilations": (1, 1), "pads_begin": (0, 1), "pads_end": (0, 0)}),
        (0, {"strides": (1, 1), "pads_begin": (1, 0)}),
        (0, {"pads_begin": (0, 0), "pads_end": (1, 0)}),
        (1, {"pads_begin": (0, 1), "pads_end": (0, 2)}),
    ],
    ids=["dropped dilation", "dropped stride", "swapped vertical pads", "swapped horizontal pads"],
)
def test_a_wrong_geometry_is_caught(index, changes):
    result = check(with_step(spatial_chain(LAYER), index, **changes))
    assert not result.passed
    assert "spatial on k" in str(result.problem)
    assert result.rel_error > 0.1


def test_a_swapped_axis_is_caught():
    chain = spatial_chain(replace(LAYER, geometry=Geometry((1, 2), (1, 0), (1, 0), (1, 1))))
    swapped = tuple(
        replace(s, geometry=chain.layer.geometry.on_axes((axis,), 1))
        for s, axis in zip(chain.specs, (1, 0), strict=True)
    )
    assert not check(replace(chain, specs=swapped)).passed


def test_a_chain_that_mixes_groups_is_caught():
    layer = Layer("k", "Conv", (4, 2, 1, 1), replace(Geometry.pointwise(2), group=2), (1, 5, 5))
    specs = (
        StepSpec((4, 4, 1, 1), Geometry.pointwise(2)),
        StepSpec((4, 4, 1, 1), Geometry.pointwise(2)),
    )
    chain = Chain(layer, "mixed", (4,), specs, tuple(normal(*s.weight_shape) for s in specs))
    result = check(chain)
    assert (result.passed, result.rel_error) == (False, inf)
    assert "groups" in str(result.problem)


@pytest.mark.parametrize(
    "layer",
    [
        MATRIX,
        Layer("k", "MatMul", (6, 4), Geometry()),
        Layer("k", "MatMul", (6, 4), Geometry(), (3,), weight_on_left=True),
    ],
)
def test_matrices_are_checked_like_convolutions(layer):
    bias = None if layer.op_type == "MatMul" else normal(6)
    assert verify_chain(normal(6, 4), bias, matrix_chain(layer)).passed


def test_a_wrong_weight_in_the_emitted_model_is_caught(monkeypatch):
    monkeypatch.setattr("onnxdecomp.graph.emit.stored_weight", lambda layer, spec, weight: weight)
    layer = Layer("k", "MatMul", (4, 4), Geometry(), (3,))
    chain = Chain(
        layer, "svd", (4,), (StepSpec((4, 4), Geometry()),) * 2, (normal(4, 4), normal(4, 4, seed=1))
    )
    assert not verify_chain(normal(4, 4), None, chain).passed


@pytest.mark.parametrize(
    ("in_shape", "expected"),
    [
        (None, (2, 3 + 6, 5 + 3)),
        ((1, 8, 7), (1, 8, 7)),
        ((8, 1000, 1001), (2, 3 + 6 + 1, 5 + 3)),
        ((8, 1001, 1001), (2, 3 + 6, 5 + 3)),
    ],
)
def test_the_checked_input_is_small_and_keeps_its_remainder_by_the_stride(in_shape, expected):
    assert check_shape(replace(LAYER, in_shape=in_shape)) == expected


@pytest.mark.parametrize(
    ("reference", "other", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [3.0, 3.0], 0.2),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1.0], inf),
        ([3.0, 4.0], [nan, 4.0], inf),
        ([3.0, inf], [3.0, 7.0], 0.0),
        ([3.0, 4.0], [3.0], inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, True], 0.5),
    ],
)
def test_output_error(reference, other, error):
    assert output_error(np.array(reference), np.array(other)) == pytest.approx(error)


ORIGINAL = """
g (float[N, 4] x) => (float[N, 3] y, int64[N] best) {
    y = MatMul(x, w)
    best = ArgMax <axis = 1, keepdims = 0> (y)
}
"""
FEEDS = [{"x": normal(5, 4)}, {"x": normal(2, 4)}]


@pytest.fixture
def original() -> onnx.ModelProto:
    return parse(ORIGINAL, {"w": normal(4, 3)})


def scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(factor)
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    return changed


def test_a_model_equals_itself(original):
    result = verify_models(original, original, FEEDS, tolerance=1e-6)
    assert (result.passed, result.problems, result.n_feeds) == (True, [], 2)
    assert result.rel_errors == {"y": 0.0, "best": 0.0}


def test_the_error_of_every_output_is_relative_to_its_own_size(original):
    result = verify_models(original, scaled(original, 1.01), FEEDS)
    assert result.passed
    assert result.worst == pytest.approx(0.01, rel=1e-3)


def test_an_error_above_the_tolerance_is_a_problem(original):
    result = verify_models(original, scaled(original, 1.01), FEEDS, tolerance=1e-3)
    assert result.problems == ["Output 'y' is off by 0.01, more than 0.001."]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ORIGINAL.replace("y", "z"), "outputs are called ['z', 'best'] instead of ['y', 'best']"),
        (ORIGINAL.replace("[N, 4] x", "[5, 4] x"), "type or shape of input 'x'"),
        (ORIGINAL.replace("int64[N] best", "int64[M] best"), "type or shape of output 'best'"),
    ],
)
def test_a_changed_interface_is_a_problem(original, text, complaint):
    result = verify_models(original, parse(text, {"w": normal(4, 3)}), FEEDS[:1])
    assert any(complaint in problem for problem in result.problems)


def test_a_changed_output_type_is_a_problem(original):
    text = ORIGINAL.replace("float[N, 3] y", "double[N, 3] y").replace(
        "y = MatMul(x, w)", "p = MatMul(x, w) y = Cast <to = 11> (p)"
    )
    result = verify_models(original, parse(text, {"w": normal(4, 3)}), FEEDS)
    assert "Output 'y' is float64 instead of float32." in result.problems


RESHAPE = "g (float[2, 6] x) => (float[%s] y) { y = Reshape(x, to) }"


@pytest.mark.parametrize("after", [(2, 2, 3), (12,)])
def test_a_changed_number_of_axes_is_a_problem(after):
    models = [
        parse(RESHAPE % declared, {"to": np.array(to)})
        for declared, to in (("A, B", (3, 4)), ("A, B", after))
    ]
    result = verify_models(*models, [{"x": normal(2, 6)}])
    assert f"Output 'y' has shape {after} instead of (3, 4)." in result.problems


def test_a_size_that_the_model_leaves_open_may_change_but_is_no_small_error():
    models = [parse(RESHAPE % "A, B", {"to": np.array(to)}) for to in ((3, 4), (4, 3))]
    result = verify_models(*models, [{"x": normal(2, 6)}])
    assert result.problems == []
    assert result.worst == inf


def test_values_that_became_infinite_are_a_problem(original):
    result = verify_models(original, scaled(original, inf), FEEDS)
    assert "Output 'y' is not finite where the original's is." in result.problems


def test_a_model_the_checker_refuses_is_a_problem(original):
    changed = scaled(original, 1)
    changed.graph.node[1].attribute[0].name = "axes"
    result = verify_models(original, changed, FEEDS)
    assert any("checker refuses" in problem for problem in result.problems)


def test_what_the_checker_refused_before_is_no_problem_now(original):
    original.graph.node[0].input[1] = ""
    assert compare._checker_problems(original, original) == []


def test_a_converted_model_that_does_not_run_is_a_problem_not_an_exception(original):
    changed = scaled(original, 1)
    changed.graph.node[0].domain = "nowhere"
    changed.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    assert "does not run" in verify_models(original, changed, FEEDS).problems[-1]


def test_an_original_that_does_not_run_is_an_error(original):
    original.graph.node[0].domain = "nowhere"
    original.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(ModelError, match="nowhere"):
        verify_models(original, original, FEEDS)


NOISE = "g (float[500] x) => (float[500] y) { r = RandomNormalLike(x) y = Add(x, r) }"


def test_a_difference_between_optimizations_off_and_on_is_a_problem(original, monkeypatch):
    plain = compare._run_all

    def disturbed(model, feeds_list, optimize, threads):
        outputs = plain(model, feeds_list, optimize, threads)
        return [{**o, "y": o["y"] * 1.5} for o in outputs] if optimize and model is not original else outputs

    monkeypatch.setattr(compare, "_run_all", disturbed)
    result = verify_models(original, scaled(original, 1), FEEDS)
    assert "optimizations off and on" in result.problems[0]


def test_what_the_original_does_not_repeat_either_is_not_held_against_the_converted():
    model = parse(NOISE)
    assert verify_models(model, model, [{"x": normal(500)}]).problems == []


def test_models_are_compared_from_their_paths(tmp_path, original):
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(original, paths[0])
    onnx.save(scaled(original, 1), paths[1], save_as_external_data=True, location="w", size_threshold=0)
    assert verify_models(*paths, FEEDS, tolerance=1e-6).passed


SIGMOID = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y) { p = MatMul(x, w) q = Add(p, low) y = Sigmoid(q) }
"""


@pytest.mark.parametrize(("shift", "n_problems"), [(1e-3, 0), (1e-1, 1)])
def test_a_probability_near_zero_is_compared_by_what_float32_can_hold(shift, n_problems):
    x, w = normal(2, 4), 0.1 * normal(4, 3)
    models = [onnx.parser.parse_model(SIGMOID) for _ in range(2)]
    for model, low in zip(models, (-9.0, -9.0 + shift), strict=True):
        model.graph.initializer.extend(
            [
                onnx.numpy_helper.from_array(w.astype(np.float32), "w"),
                onnx.numpy_helper.from_array(np.array([low], np.float32), "low"),
            ]
        )
    result = verify_models(*models, [{"x": x.astype(np.float32)}], tolerance=1e-4)
    assert len(result.problems) == n_problems
    assert result.worst == pytest.approx(shift, rel=0.3)
