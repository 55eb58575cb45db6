"""cp3 and cp4 as methods: chains, bounds, refusals, errors, on layers of every geometry."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxdecomp.layer import Geometry, Layer, OpType
from onnxdecomp.methods import cp3, cp4, find_methods
from onnxdecomp.methods.base import Method, decompose, recompose, relative_error

EXACT = 1e-12
RECOVERED = 1e-6

SHAPES = [(6, 4, 3, 3), (5, 7, 5, 3), (4, 3, 1, 5), (6, 4, 5), (3, 4, 2, 3, 2), (2, 3, 7, 7)]
IMAGE_SHAPES = [shape for shape in SHAPES if len(shape) == 4 and min(shape[2:]) > 1]

METHODS_AND_SHAPES = [(m, shape) for m in cp3.METHODS for shape in SHAPES] + [
    (m, shape) for m in cp4.METHODS for shape in IMAGE_SHAPES
]
NLS = [cp3.METHODS[0], cp4.METHODS[0]]


def layer_of(shape: tuple[int, ...], group: int = 1, op_type: OpType = "Conv") -> Layer:
    """A layer whose every axis moves differently, so that swapped axes show."""
    axes = range(len(shape) - 2)
    geometry = Geometry(
        strides=tuple(1 + a for a in axes),
        pads_begin=tuple(1 + a for a in axes),
        pads_end=tuple(a for a in axes),
        dilations=tuple(2 + a for a in axes),
        group=group,
        transposed=op_type == "ConvTranspose",
        output_padding=(0,) * len(axes),
    )
    return Layer("y", op_type, shape, geometry)


def weight_of(layer: Layer, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng([9, seed]).standard_normal(layer.weight_shape)


def recomposed(method: Method, layer: Layer, weight: NDArray[np.floating], rank: int) -> NDArray[np.floating]:
    analysis = method.analyze(layer, weight, np.random.default_rng(0))
    chain = decompose(method, analysis, layer, (rank,))
    return recompose(chain.specs, chain.weights, layer.group)


def planted_weight(layer: Layer, rank: int) -> NDArray[np.floating]:
    """A weight whose every group is a sum of `rank` components, made from a random cp4 or cp3 chain."""
    method = NLS[0] if len(layer.kernel) != 2 else NLS[1]
    specs = method.plan(layer, (rank,))
    rng = np.random.default_rng(4)
    return recompose(specs, [rng.standard_normal(s.weight_shape) for s in specs], layer.group)


def ids(value: object) -> str | None:
    return value.full_name if isinstance(value, Method) else None


@pytest.mark.parametrize(("method", "shape"), METHODS_AND_SHAPES, ids=ids)
def test_the_chain_equals_the_layer_at_the_bound(method, shape):
    layer = layer_of(shape)
    weight = weight_of(layer)
    (bound,) = method.rank_bounds(layer)
    assert relative_error(weight, recomposed(method, layer, weight, bound)) < EXACT
    assert method.analyze(layer, weight, np.random.default_rng(0)).error((bound,)) == 0.0


@pytest.mark.parametrize(("method", "shape"), METHODS_AND_SHAPES, ids=ids)
def test_the_error_is_that_of_the_recomposed_chain(method, shape):
    layer = layer_of(shape)
    weight = weight_of(layer)
    analysis = method.analyze(layer, weight, np.random.default_rng(0))
    error = analysis.error((3,))
    assert 0.0 < error < 1.0
    assert relative_error(weight, recomposed(method, layer, weight, 3)) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("method", NLS, ids=ids)
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_groups_share_the_rank_and_each_is_recovered(method, op_type, group):
    layer = layer_of((6 * group, 5, 3, 3), group, op_type)
    weight = planted_weight(layer, 3)
    assert relative_error(weight, recomposed(method, layer, weight, 3)) < RECOVERED


@pytest.mark.parametrize("shape", [(8, 6, 5), (6, 5, 2, 3, 2)], ids=["1-D", "3-D"])
def test_cp3_recovers_planted_components_on_other_than_two_axes(shape):
    layer = layer_of(shape)
    weight = planted_weight(layer, 3)
    assert relative_error(weight, recomposed(NLS[0], layer, weight, 3)) < RECOVERED


@pytest.mark.parametrize("method", [*cp3.METHODS, *cp4.METHODS], ids=ids)
def test_grouped_layers_are_exact_at_the_bound(method):
    layer = layer_of((8, 3, 3, 2), group=2)
    weight = weight_of(layer)
    (bound,) = method.rank_bounds(layer)
    assert relative_error(weight, recomposed(method, layer, weight, bound)) < EXACT


@pytest.mark.parametrize("method", NLS, ids=ids)
def test_a_group_of_zeros_beside_others_stays_zero(method):
    layer = layer_of((8, 3, 3, 2), group=2)
    weight = weight_of(layer)
    weight[4:] = 0.0
    assert not np.any(recomposed(method, layer, weight, 2)[4:])


@pytest.mark.parametrize("method", [*cp3.METHODS, *cp4.METHODS], ids=ids)
@pytest.mark.parametrize("rank", [1, 5])
def test_a_zero_weight_has_no_error(method, rank):
    layer = layer_of((6, 4, 3, 3))
    analysis = method.analyze(layer, np.zeros(layer.weight_shape), np.random.default_rng(0))
    assert analysis.error((rank,)) == 0.0
    assert not any(np.any(w) for w in analysis.weights((rank,)))


def test_the_bound_leaves_out_the_longest_mode():
    layer = layer_of((6, 4, 3, 3))
    assert cp3.METHODS[0].rank_bounds(layer) == (4 * 6,)
    assert cp4.METHODS[0].rank_bounds(layer) == (4 * 3 * 3,)


def test_cp3_keeps_the_whole_geometry_on_the_depthwise_step():
    layer = layer_of((6, 4, 3, 5))
    first, middle, last = cp3.METHODS[0].plan(layer, (7,))
    assert first.geometry == last.geometry == Geometry.pointwise(2)
    assert middle.geometry == replace(layer.geometry, group=7)
    assert [s.weight_shape for s in (first, middle, last)] == [(7, 4, 1, 1), (7, 1, 3, 5), (6, 7, 1, 1)]


def test_cp4_gives_each_axis_to_one_depthwise_step():
    layer = layer_of((6, 4, 3, 5))
    _, vertical, horizontal, _ = cp4.METHODS[0].plan(layer, (7,))
    assert vertical.weight_shape == (7, 1, 3, 1)
    assert horizontal.weight_shape == (7, 1, 1, 5)
    assert (vertical.geometry.strides, horizontal.geometry.strides) == ((1, 1), (1, 2))
    assert (vertical.geometry.dilations, horizontal.geometry.dilations) == ((2, 1), (1, 3))
    assert (vertical.geometry.pads_begin, horizontal.geometry.pads_begin) == ((1, 0), (0, 2))
    assert (vertical.geometry.pads_end, horizontal.geometry.pads_end) == ((0, 0), (0, 1))


@pytest.mark.parametrize("method", NLS, ids=ids)
def test_only_the_spatial_steps_of_a_transposed_layer_are_transposed(method):
    layer = layer_of((6, 4, 3, 5), op_type="ConvTranspose")
    first, *spatial, last = method.plan(layer, (7,))
    assert not first.geometry.transposed
    assert not last.geometry.transposed
    assert all(step.geometry.transposed for step in spatial)


@pytest.mark.parametrize("method", NLS, ids=ids)
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Layer("y", "Gemm", (6, 4), Geometry()), "no kernel"),
        (layer_of((6, 4, 1, 1)), "one tap"),
        (layer_of((6, 1, 3, 3), group=6), "depthwise"),
    ],
    ids=["matrix", "1x1", "depthwise"],
)
def test_layers_that_cp_cannot_help_are_refused_with_a_reason(method, layer, reason):
    assert reason in (method.refusal(layer) or "")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((6, 4, 5), "two spatial axes"), ((6, 4, 2, 3, 2), "two spatial axes"), ((6, 4, 1, 5), "one axis only")],
)
def test_cp4_refuses_kernels_that_are_not_two_dimensional(shape, reason):
    assert reason in (cp4.METHODS[0].refusal(layer_of(shape)) or "")


@pytest.mark.parametrize(("method", "shape"), METHODS_AND_SHAPES, ids=ids)
def test_what_can_be_decomposed_is_not_refused(method, shape):
    assert method.refusal(layer_of(shape)) is None


@pytest.mark.parametrize("method", [*cp3.METHODS, *cp4.METHODS], ids=ids)
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_the_error_never_rises_with_the_rank_in_whatever_order_it_is_asked(method, order):
    layer = layer_of((6, 5, 3, 3))
    analysis = method.analyze(layer, weight_of(layer), np.random.default_rng(0))
    ranks = [*range(1, 27, 5), *method.rank_bounds(layer)]
    for rank in ranks[::order]:
        analysis.error((rank,))
    errors = [analysis.error((rank,)) for rank in ranks]
    assert np.all(np.diff(errors) <= 0.0)


@pytest.mark.parametrize("method", NLS, ids=ids)
def test_a_worse_solution_of_a_higher_rank_gives_way_to_the_lower_one(method, monkeypatch):
    layer = layer_of((6, 5, 3, 3))
    weight = weight_of(layer)
    analysis = method.analyze(layer, weight, np.random.default_rng(0))
    solve = analysis._solve
    monkeypatch.setattr(analysis, "_solve", lambda rank: solve(min(rank, 8)) if rank != 12 else solve(2))
    assert analysis.error((8,)) == analysis.error((12,))
    assert [w.shape for w in analysis.weights((12,))] == [s.weight_shape for s in method.plan(layer, (12,))]


@pytest.mark.parametrize("method", [*cp3.METHODS, *cp4.METHODS], ids=ids)
def test_same_seed_same_bytes_whatever_was_asked_before(method):
    layer = layer_of((6, 5, 3, 3))
    one, two = (method.analyze(layer, weight_of(layer), np.random.default_rng(3)) for _ in range(2))
    two.error((2,))
    assert [w.tobytes() for w in one.weights((6,))] == [w.tobytes() for w in two.weights((6,))]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_weight_is_not_modified_and_steps_are_float64(dtype):
    layer = layer_of((6, 5, 3, 3))
    weight = weight_of(layer).astype(dtype)
    before = weight.copy()
    weights = NLS[0].analyze(layer, weight, np.random.default_rng(0)).weights((4,))
    np.testing.assert_array_equal(weight, before)
    assert {w.dtype for w in weights} == {np.dtype(np.float64)}


@pytest.mark.parametrize("method", NLS, ids=ids)
def test_the_vectors_of_a_component_have_equal_norms(method):
    layer = layer_of((6, 5, 3, 3))
    weights = method.analyze(layer, weight_of(layer), np.random.default_rng(0)).weights((4,))
    first, *middle, last = weights
    rows = [first, *middle, np.swapaxes(last, 0, 1)]
    norms = [np.linalg.norm(w.reshape(4, -1), axis=1) for w in rows]
    assert np.allclose(norms, norms[0])


@pytest.mark.parametrize("name", ["cp3", "cp4"])
def test_only_the_gauss_newton_variant_is_chosen_automatically(name):
    assert [m.full_name for m in find_methods(name)] == [f"{name}/nls"]
    assert [m.full_name for m in find_methods(f"{name}/greedy")] == [f"{name}/greedy"]
    assert [m.full_name for m in find_methods(f"{name}/als")] == [f"{name}/als"]


@pytest.mark.parametrize("method", [*cp3.METHODS, *cp4.METHODS], ids=ids)
def test_estimated_work_counts_groups_and_is_small_at_the_bound(method):
    one, two = layer_of((64, 32, 3, 3)), layer_of((128, 32, 3, 3), group=2)
    assert method.solve_flops(two, (16,)) == 2 * method.solve_flops(one, (16,))
    assert method.solve_flops(one, method.rank_bounds(one)) == one.n_params
