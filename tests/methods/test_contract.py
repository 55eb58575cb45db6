"""Every registered method keeps the contract on every kind of layer."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxdecomp.layer import Layer
from onnxdecomp.methods import registered
from onnxdecomp.methods.base import decompose
from tests import contract
from tests.asserts import assert_sentence
from tests.builders import CONVOLUTIONS, LAYERS, MATRICES, conv_layer, weight_of

METHODS = {method.full_name: method for method in registered()}
REASONS = {
    (name, kind): method.refusal(layer) for name, method in METHODS.items() for kind, layer in LAYERS.items()
}
FEW_KINDS = {
    "groups",
    "transposed strided",
    "1-D",
    "Gemm",
    "MatMul with the weight on the left",
    "1x1 groups",
}
"""For forms that are never chosen on their own: they share their plans with one that is."""

ACCEPTED = [
    (name, kind)
    for (name, kind), reason in REASONS.items()
    if reason is None and (METHODS[name].automatic or kind in FEW_KINDS)
]
REFUSED = [pair for pair, reason in REASONS.items() if reason is not None]


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(("name", "kind"), ACCEPTED)
def test_contract(name, kind, check):
    check(METHODS[name], LAYERS[kind])


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_a_refusal_is_a_sentence(name, kind):
    assert_sentence(REASONS[name, kind])


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, *MATRICES])
def test_some_method_accepts(kind):
    alone = {"Gemm of one output"}
    assert (kind in alone) != any((name, kind) in ACCEPTED for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_accepts_something(name):
    assert any(pair[0] == name for pair in ACCEPTED)


@pytest.mark.parametrize("name", METHODS)
def test_rank_names_and_bounds_agree(name):
    method = METHODS[name]
    layers = [LAYERS[kind] for pair_name, kind in ACCEPTED if pair_name == name]
    assert {len(method.rank_bounds(layer)) for layer in layers} == {len(method.rank_names)}


@pytest.mark.parametrize("name", METHODS)
def test_the_estimated_work_is_positive(name):
    method = METHODS[name]
    layers = [LAYERS[kind] for pair_name, kind in ACCEPTED if pair_name == name]
    assert min(method.solve_flops(layer, contract.low_ranks(method, layer)) for layer in layers) > 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", METHODS)
def test_weights_are_float64_whatever_comes_in(name, dtype):
    method = METHODS[name]
    layer = next(LAYERS[kind] for pair_name, kind in ACCEPTED if pair_name == name)
    weight = weight_of(layer).astype(dtype)
    analysis = method.analyze(layer, weight, np.random.default_rng(0))
    chain = decompose(method, analysis, layer, method.rank_bounds(layer))
    assert {w.dtype for w in chain.weights} == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", METHODS)
def test_a_zero_weight_has_no_error(name):
    method = METHODS[name]
    layer = next(LAYERS[kind] for pair_name, kind in ACCEPTED if pair_name == name)
    analysis = method.analyze(layer, np.zeros(layer.weight_shape), np.random.default_rng(0))
    ranks = contract.low_ranks(method, layer)
    chain = decompose(method, analysis, layer, ranks)
    assert analysis.error(ranks) == 0.0
    assert all(np.all(np.isfinite(w)) for w in chain.weights)


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    """Draw a convolution of any geometry with at most three spatial axes."""
    n_axes = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*(st.integers(low, high) for _ in range(n_axes))))

    kernel, strides, dilations = per_axis(1, 4 - n_axes // 3), per_axis(1, 3), per_axis(1, 2)
    group, out_per_group, in_per_group = (draw(st.integers(1, 3)) for _ in range(3))
    weight_shape = (group * out_per_group, in_per_group, *kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = tuple(span + extra for span, extra in zip(spans, per_axis(0, 3), strict=True))
    transposed = draw(st.booleans())
    same = not transposed and draw(st.integers(0, 3)) == 0
    output_padding = None
    if transposed:
        output_padding = tuple(draw(st.integers(0, stride - 1)) for stride in strides)
    layer = conv_layer(
        weight_shape,
        (draw(st.integers(1, 2)), *sizes),
        group=group,
        strides=strides,
        pads=() if same else (*per_axis(0, 1), *per_axis(0, 1)),
        dilations=() if same else dilations,  # onnxruntime runs no dilated layer with automatic pads
        auto_pad=draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"])) if same else "NOTSET",
        output_padding=output_padding,
    )
    assume(layer.in_shape is not None and min(layer.spec.out_shape(layer.in_shape)) > 0)
    return layer


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(layer=convolutions(), name=st.sampled_from(sorted(METHODS)))
def test_contract_on_any_geometry(layer, name):
    method = METHODS[name]
    reason = method.refusal(layer)
    if reason is not None:
        assert_sentence(reason)
        return
    contract.check_full_rank_equals_the_layer(method, layer)
    contract.check_chain_equals_its_recomposed_weight(method, layer)
    contract.check_planned_is_written(method, layer)
