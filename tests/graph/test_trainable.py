"""Which initializers train."""

import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.io import load
from onnxdecomp.graph.trainable import (
    all_of,
    check_floating,
    decomposed_of,
    has_half_floats,
    matching,
    replaced_outputs,
)
from tests.graph.codebooks import random_codebook, with_codebooks
from tests.graph.models import normal, parse
from tests.networks import network

TEACHER = "g (float[2,8] x) => (float[2,4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
STUDENT = (
    "g (float[2,8] x) => (float[2,4] y) { t = MatMul(x, a) h = MatMul(t, b) r = Relu(h) y = MatMul(r, v) }"
)
V = normal(6, 4)


def teacher() -> onnx.ModelProto:
    return parse(TEACHER, {"w": normal(8, 6), "v": V})


def student(v: np.ndarray = V) -> onnx.ModelProto:
    return parse(STUDENT, {"a": normal(8, 2), "b": normal(2, 6), "v": v})


def test_statistics_of_batch_normalization_never_train() -> None:
    names = all_of(load(network()))
    assert {"w1", "scale", "shift", "b2", "w4"} <= set(names)
    assert not {"mean", "var"} & set(names)


def test_scalars_of_a_formula_train_only_by_name() -> None:
    model = load(
        parse(
            "g (float[2,8] x) => (float[2,4] y) { t = MatMul(x, w) y = Div(t, d) }",
            {"w": normal(8, 4), "d": np.array(3.0, np.float32)},
        )
    )
    assert all_of(model) == ("w",)
    assert matching(model, "d") == ("d",)


def test_what_reaches_no_output_does_not_train() -> None:
    proto = teacher()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(3, 3), "unused"))
    assert all_of(load(proto)) == ("w", "v")


def test_decomposed_is_what_the_teacher_does_not_hold() -> None:
    assert decomposed_of(load(student()), load(teacher())) == ("a", "b")


def test_decomposed_includes_what_has_other_numbers_under_the_same_name() -> None:
    assert decomposed_of(load(student(V + 1)), load(teacher())) == ("a", "b", "v")


def test_a_student_that_is_its_own_teacher_has_nothing_to_train() -> None:
    with pytest.raises(UsageError, match=r"nothing is decomposed.*--train all"):
        decomposed_of(load(teacher()), load(teacher()))


@pytest.mark.parametrize(("dtype", "scale"), [(np.float16, ""), (np.int16, "tensor"), (np.int16, "channel")])
def test_of_a_codebook_centroids_or_their_scale_train_and_indices_do_not(dtype: type, scale: str) -> None:
    codebook = random_codebook((8, 6), 3, dtype=dtype, scale=scale)
    proto = with_codebooks(teacher(), {"w": codebook})
    model = load(proto)
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    (name,) = decomposed_of(model, load(teacher()))
    assert kinds[name] == (onnx.TensorProto.FLOAT if scale else onnx.TensorProto.FLOAT16)
    assert name in all_of(model)


def test_a_pattern_that_matches_nothing_lists_names() -> None:
    with pytest.raises(UsageError, match=r"'conv\*' matches none of the 2 trainable initializers \(w, v\)"):
        matching(load(teacher()), "conv*")


def test_replaced_layers_are_known_by_the_tensor_they_still_put_out() -> None:
    assert replaced_outputs(load(student()), load(teacher())) == ("h",)


def test_a_model_without_float_initializers_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing can be trained"):
        all_of(load(parse("g (float[2,8] x) => (float[2,8] y) { y = Relu(x) }")))


def test_a_quantized_model_is_refused_with_its_operators() -> None:
    proto = parse(
        "g (float[2,8] x) => (float[2,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)},
    )
    with pytest.raises(ModelError, match=r"quantized already \(QuantizeLinear\)"):
        check_floating(load(proto))


def test_half_floats_are_seen() -> None:
    proto = parse(
        "g (float16[2,8] x) => (float16[2,4] y) { y = MatMul(x, w) }", {"w": normal(8, 4, dtype=np.float16)}
    )
    assert has_half_floats(load(proto))
    assert not has_half_floats(load(teacher()))


BRANCHES = """g (bool c, float[2,8] x) => (float[2,4] y) {
    h = MatMul(x, u)
    y = If (c) <then_branch = p () => (float[2,4] t) { t = MatMul(h, w) dead = MatMul(h, gone) },
                else_branch = q () => (float[2,4] e) {
                    f = MatMul(h, k)
                    e = BatchNormalization(f, v, b, m, s)
                    g = Neg(e)
                }>
}"""
THEN, ELSE = "y.then_branch/", "y.else_branch/"
IN_ELSE = {"k": normal(6, 4), **{name: np.abs(normal(4, seed=n)) for n, name in enumerate("vbms")}}


def branches(then: dict, text: str = BRANCHES, other: dict = IN_ELSE) -> onnx.ModelProto:
    bodies = {THEN: {"gone": normal(6, 4), **then}, ELSE: other}
    return parse(text, {"u": normal(8, 6)}, bodies=bodies)


def test_weights_in_bodies_train_but_not_statistics_or_what_the_output_does_not_need() -> None:
    assert all_of(load(branches({"w": normal(6, 4)}))) == ("u", "w", "k", "v", "b")


def test_weights_of_bodies_that_share_a_name_do_not_train() -> None:
    proto = branches({"k": normal(6, 4)}, BRANCHES.replace("w)", "k)"))
    assert all_of(load(proto)) == ("u", "v", "b")


def test_a_weight_in_a_body_that_a_constant_shares_its_name_with_does_not_train() -> None:
    text = BRANCHES.replace("g = Neg(e)", "w = Constant<value_float = 1.0>()")
    assert all_of(load(branches({"w": normal(6, 4)}, text))) == ("u", "k", "v", "b")


@pytest.mark.parametrize("cut", [THEN, ELSE])
def test_what_a_body_holds_decomposed_is_found_and_what_its_neighbour_kept_is_not(cut: str) -> None:
    text, own = BRANCHES.replace("w)", "k)"), normal(6, 4, seed=1)
    original = branches({"k": own}, text)
    factors = {"w0": normal(6, 2), "w1": normal(2, 4)}
    if cut == THEN:
        text = text.replace("t = MatMul(h, k)", "i = MatMul(h, w0) t = MatMul(i, w1)")
        proto = branches(factors, text)
    else:
        text = text.replace("f = MatMul(h, k)", "i = MatMul(h, w0) f = MatMul(i, w1)")
        proto = branches({"k": own}, text, {n: a for n, a in IN_ELSE.items() if n != "k"} | factors)
    assert decomposed_of(load(proto), load(original)) == ("w0", "w1")


def test_half_floats_in_a_body_are_seen() -> None:
    text = BRANCHES.replace("t = MatMul(h, w)", "i = Cast<to = 1>(w) t = MatMul(h, i)")
    assert has_half_floats(load(branches({"w": normal(6, 4, dtype=np.float16)}, text)))
    assert not has_half_floats(load(branches({"w": normal(6, 4)}, text)))
