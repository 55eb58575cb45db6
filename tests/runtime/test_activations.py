"""Moments gathered from running models, against all patches of one large run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.find import LayerGroup, find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Chain
from onnxdecomp.runtime import activations, outputs
from onnxdecomp.runtime.activations import gather_moments, stream_moments
from onnxdecomp.runtime.outputs import with_outputs
from onnxdecomp.runtime.pairs import KnownOutputs, LastStepAt, Pairs
from onnxdecomp.runtime.patches import PatchSums
from onnxdecomp.weights.moments import MAX_ROOT, Moments, PairMoments
from tests.builders import CONVOLUTIONS, conv_layer, dense_model, input_of, weight_of
from tests.graph.models import normal, parse, rewrite, run, three_steps
from tests.networks import network

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
"""Moments of values of order one, products in float32."""


def groups_of(proto: onnx.ModelProto) -> list[LayerGroup]:
    return find_layers(load(proto)).groups


def look_at(n_patches: int, monkeypatch) -> None:
    """Let as many patches of every layer be looked at, whatever its size."""
    monkeypatch.setattr(activations, "MIN_ROWS", n_patches)
    monkeypatch.setattr(activations, "ROWS_PER_VALUE", 0)
    monkeypatch.setattr(activations, "FEW_PER_VALUE", 0)


def gather(proto: onnx.ModelProto, samples: dict, **options) -> dict[str, Moments]:
    return gather_moments(proto, groups_of(proto), samples, **options)


def pair_moments(original, rewritten, tensors, layer, step, samples, **options) -> PairMoments | None:
    pairs = Pairs(original, [y for y, _ in tensors], samples, **options)
    return pairs.moments(rewritten, LastStepAt(layer, step, tensors))


def pair_rows(original, rewritten, tensors, layer, step, samples, **options):
    pairs = Pairs(original, [y for y, _ in tensors], samples, **options)
    return pairs.rows(rewritten, LastStepAt(layer, step, tensors))


def naive_patches(layer: Layer, data: np.ndarray) -> np.ndarray:
    """Return all patches ``(n, G, D)`` of a convolution with plain pads, place by place."""
    geometry, kernel = layer.geometry, layer.kernel
    pads = list(zip(geometry.pads_begin, geometry.pads_end, strict=True))
    padded = np.pad(data, [(0, 0), (0, 0), *pads])
    patches = []
    for n in range(len(data)):
        for place in np.ndindex(*geometry.out_shape(data.shape[2:], kernel)):
            window = tuple(
                slice(p * s, p * s + (k - 1) * d + 1, d)
                for p, s, k, d in zip(place, geometry.strides, kernel, geometry.dilations, strict=True)
            )
            patches.append(padded[(n, slice(None), *window)].reshape(layer.group, -1))
    return np.asarray(patches, np.float64)


def assert_moments_of(moments: Moments, patches: np.ndarray) -> None:
    """Compare with the moments of all patches ``(n, G, D)``, or rows ``(n, D)``."""
    patches = np.asarray(patches, np.float64).reshape(len(patches), *moments.mean.shape)
    assert moments.n_patches == len(patches)
    np.testing.assert_allclose(moments.mean, patches.mean(axis=0), **CLOSE)
    np.testing.assert_allclose(
        moments.second, np.einsum("ngi,ngj->gij", patches, patches) / len(patches), **CLOSE
    )


def numbers_of(moments: dict[str, Moments]) -> np.ndarray:
    arrays = [array for m in moments.values() for array in (m.mean, m.second)]
    return np.concatenate([np.zeros(0), *(array.ravel() for array in arrays)])


def assert_same_moments(actual: dict[str, Moments], expected: dict[str, Moments], **tolerance) -> None:
    assert list(actual) == list(expected)
    assert [m.n_patches for m in actual.values()] == [m.n_patches for m in expected.values()]
    np.testing.assert_allclose(numbers_of(actual), numbers_of(expected), **tolerance)


PLAIN = {
    name: layer
    for name, layer in CONVOLUTIONS.items()
    if layer.geometry.auto_pad == "NOTSET" and not layer.geometry.transposed
}


@pytest.mark.parametrize("layer", PLAIN.values(), ids=PLAIN)
def test_moments_are_those_of_all_patches(layer):
    data = input_of(layer)
    moments = gather(dense_model(layer, weight_of(layer)), {"x": data})["y"]
    assert_moments_of(moments, naive_patches(layer, data))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n_axes=st.integers(1, 3),
    group=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 6),
    strides=st.tuples(*[st.integers(1, 3)] * 3),
    dilations=st.tuples(*[st.integers(1, 2)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_moments_are_those_of_all_patches_of_any_convolution(n_axes, group, pads, strides, dilations, kernel):
    layer = conv_layer(
        (2 * group, 2, *kernel[:n_axes]),
        (2, *(6, 5, 7)[:n_axes]),
        group=group,
        strides=strides[:n_axes],
        pads=pads[: 2 * n_axes],
        dilations=dilations[:n_axes],
    )
    data = input_of(layer)
    moments = gather(dense_model(layer, weight_of(layer)), {"x": data})["y"]
    assert_moments_of(moments, naive_patches(layer, data))


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n.startswith(("same", "transposed"))])
def test_moments_give_those_of_the_output(name):
    layer = CONVOLUTIONS[name]
    data, weight = input_of(layer), weight_of(layer)
    model = dense_model(layer, weight)
    (output,) = run(model, {"x": data})
    moments = gather(model, {"x": data})["y"]
    blocks = weight.reshape(layer.group, layer.out_channels // layer.group, -1)  # (G, O/G, D)
    per_channel = np.moveaxis(output, 1, 0).reshape(layer.out_channels, -1).astype(np.float64)
    mean = np.einsum("god,gd->go", blocks, moments.mean).ravel()
    energy = np.einsum("god,gde,goe->go", blocks, moments.second, blocks).ravel()
    np.testing.assert_allclose(mean, per_channel.mean(axis=1), **CLOSE)
    np.testing.assert_allclose(energy, np.square(per_channel).mean(axis=1), **CLOSE)


@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_covariance_has_no_negative_direction(layer):
    moments = gather(dense_model(layer, weight_of(layer)), {"x": input_of(layer) + 3.0})["y"]
    values = np.linalg.eigvalsh(moments.covariance)
    assert values.min() > -1e-5 * values.max()


def test_a_transposed_gemm_input_is_read_by_columns():
    text = "g (float[6, N] x) => (float[N, 5] y) { y = Gemm <transA = 1> (x, w) }"
    data = normal(6, 9)
    assert_moments_of(gather(parse(text, {"w": normal(6, 5)}), {"x": data})["y"], data.T)


def test_the_leading_axes_of_a_matmul_are_rows():
    text = "g (float[N, 3, 2, 6] x) => (float[N, 3, 2, 5] y) { y = MatMul(x, w) }"
    data = normal(4, 3, 2, 6)
    moments = gather(parse(text, {"w": normal(6, 5)}), {"x": data})["y"]
    assert_moments_of(moments, data.reshape(-1, 6))


def test_a_weight_on_the_left_meets_columns():
    text = "g (float[N, 3, 6, 7] x) => (float[N, 3, 5, 7] y) { y = MatMul(w, x) }"
    data = normal(4, 3, 6, 7)
    moments = gather(parse(text, {"w": normal(5, 6)}), {"x": data})["y"]
    assert_moments_of(moments, data.swapaxes(-1, -2).reshape(-1, 6))


SHARED = """
g (float[N, 4] a, float[N, 4] b) => (float[N, 4] y) {
    p = MatMul(a, w)
    q = Relu(b)
    r = MatMul(q, w)
    y = Add(p, r)
}
"""


def test_sites_that_share_a_weight_are_gathered_together():
    a, b = normal(8, 4), normal(8, 4, seed=1)
    (moments,) = gather(parse(SHARED, {"w": normal(4, 4)}), {"a": a, "b": b}).values()
    assert_moments_of(moments, np.concatenate([a, np.maximum(b, 0)]))


def test_sites_that_share_a_weight_share_the_places_too(monkeypatch):
    look_at(100, monkeypatch)
    text = "g (float[N, 50, 4] x) => (float[N, 50, 4] y) { p = MatMul(x, w) q = MatMul(x, w) y = Add(p, q) }"
    data = np.arange(10 * 50 * 4, dtype=np.float32).reshape(10, 50, 4)
    seen = []
    real = PatchSums.add
    monkeypatch.setattr(PatchSums, "add", lambda sums, z: seen.extend(z[:, 0, 0]) or real(sums, z))
    (moments,) = gather(parse(text, {"w": normal(4, 4)}), {"x": data}).values()
    assert moments.n_patches == 100 == len(seen)
    assert len(set(seen)) > 60  # both read the same tensor, each at places of its own


def test_entries_that_are_whole_inputs_are_run_one_by_one(monkeypatch):
    look_at(60, monkeypatch)
    text = "g (float[T, 1, 4] x) => (float[T, 1, 3] y) { y = MatMul(x, w) }"
    moments = gather(parse(text, {"w": normal(4, 3)}), {"x": normal(20, 6, 1, 4)})["y"]
    assert 40 < moments.n_patches < 80


def test_two_layers_may_read_the_same_tensor():
    text = "g (float[N, 4] x) => (float[N, 5] y, float[N, 3] z) { y = MatMul(x, v) z = MatMul(x, w) }"
    data = normal(8, 4)
    moments = gather(parse(text, {"v": normal(4, 5), "w": normal(4, 3)}), {"x": data})
    assert_same_moments({"z": moments["y"]}, {"z": moments["z"]}, rtol=0)


def test_a_layer_may_read_an_output_of_the_model():
    text = "g (float[N, 4] x) => (float[N, 4] h, float[N, 3] y) { h = Relu(x) y = MatMul(h, w) }"
    data = normal(8, 4)
    moments = gather(parse(text, {"w": normal(4, 3)}), {"x": data})["y"]
    assert_moments_of(moments, np.maximum(data, 0))


@pytest.mark.parametrize("n_samples", [8, 9, 11])
def test_samples_that_do_not_fill_a_fixed_batch_are_left_out(n_samples):
    data = normal(n_samples, 16, 12, 12)
    moments = gather(network(batch=4, channels=16), {"x": data})
    assert_same_moments(moments, gather(network(channels=16), {"x": data[:8]}), **CLOSE)


def test_labels_among_the_samples_are_not_fed():
    layer = PLAIN["plain"]
    data = input_of(layer)
    model = dense_model(layer, weight_of(layer))
    assert gather(model, {"x": data, "labels": np.arange(2)}).keys() == {"y"}


HALF = """
g (float16[N, 6] x) => (float16[N, 5] y) {
    h = MatMul(x, w)
    y = MatMul(h, v)
}
"""


def test_half_precision_is_summed_as_it_is():
    data = normal(30, 6, dtype=np.float16)
    model = parse(HALF, {"w": normal(6, 4, dtype=np.float16), "v": normal(4, 5, dtype=np.float16)})
    (hidden,) = run(with_outputs(model, ["h"]), {"x": data})
    moments = gather(model, {"x": data})
    assert_moments_of(moments["h"], data)
    np.testing.assert_allclose(moments["y"].mean[0], hidden.astype(np.float64).mean(axis=0), atol=2e-3)


BODY = """
g (float[N, 4] x, bool b) => (float[N, 4] y) {
    h = MatMul(x, v)
    y = If (b) <
        then_branch = yes () => (float[N, 4] o) { o = MatMul(h, w) },
        else_branch = no () => (float[N, 4] o) { o = Relu(h) }
    >
}
"""


def test_layers_in_bodies_get_no_moments():
    model = parse(BODY, {"v": normal(4, 4), "w": normal(4, 4, seed=1)})
    assert {group.layer.key for group in groups_of(model)} == {"h", "y.then_branch/o"}
    data = normal(5, 4)
    moments = gather(model, {"x": data, "b": np.asarray(True)})
    assert moments.keys() == {"h"}
    assert_moments_of(moments["h"], data)


def test_layers_that_meet_values_which_are_not_finite_get_no_moments():
    text = "g (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, v) l = Log(h) y = MatMul(l, w) }"
    model = parse(text, {"v": normal(4, 4), "w": normal(4, 3)})
    assert gather(model, {"x": normal(9, 4)}).keys() == {"h"}


SIZES = {"c1": 144, "c2": 288, "g": 32, "y": 48}
"""D of the layers of `network`."""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    return {"x": normal(20, 16, 12, 12)}


@pytest.fixture
def path(tmp_path) -> Path:
    """The same model with external data."""
    file = tmp_path / "model.onnx"
    onnx.save(network(), file, save_as_external_data=True, location="model.data", size_threshold=0)
    return file


@pytest.fixture(scope="module")
def all_moments(model, samples) -> dict[str, Moments]:
    return gather(model, samples)


def test_every_layer_of_a_network_gets_moments(all_moments):
    assert {key: m.second.shape[-1] for key, m in all_moments.items()} == SIZES


def test_folded_layers_read_what_they_read_before(model, samples, all_moments):
    (c1,) = (group.layer for group in groups_of(model) if group.layer.key == "c1")
    assert_moments_of(all_moments["c1"], naive_patches(c1, samples["x"]))


@pytest.mark.parametrize("key", SIZES)
def test_a_layer_does_not_depend_on_the_others(model, samples, all_moments, key, monkeypatch):
    look_at(100, monkeypatch)
    alone = [group for group in groups_of(model) if group.layer.key == key]
    together = gather(model, samples)
    assert together["c1"].n_patches < all_moments["c1"].n_patches
    assert_same_moments(gather_moments(model, alone, samples), {key: together[key]}, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("max_batch", [1, 7, 64])
@pytest.mark.parametrize("min_rows", [100, 4096])
def test_the_batch_does_not_matter(model, samples, monkeypatch, max_batch, min_rows):
    look_at(min_rows, monkeypatch)
    expected = gather(model, samples)
    monkeypatch.setattr(activations, "MAX_BATCH", max_batch)
    assert_same_moments(gather(model, samples), expected, **CLOSE)


def test_the_number_of_jobs_changes_no_bit(model, samples, monkeypatch):
    monkeypatch.setattr(activations, "MAX_BATCH", 3)
    (c2,) = (group for group in groups_of(model) if group.layer.key == "c2")

    def sums(jobs):
        moments = gather(model, samples, jobs=jobs)
        pair = pair_moments(model, model, [("c2", "r1")], c2.layer, c2.layer.spec, samples, jobs=jobs)
        return [moments[key].second.tobytes() for key in sorted(moments)] + [pair.cross_yz.tobytes()]

    assert sums(1) == sums(2) == sums(5)


def test_known_outputs_of_the_original_are_not_run_again(model, samples, monkeypatch):
    (c2,) = (group for group in groups_of(model) if group.layer.key == "c2")
    seen = (model, model, [("c2", "r1")], c2.layer, c2.layer.spec, samples)
    known = KnownOutputs()
    first = pair_moments(*seen, known=known)
    ran = []
    real = outputs.run
    monkeypatch.setattr(outputs, "run", lambda s, feed: ran.append(s.get_outputs()[0].name) or real(s, feed))
    again = pair_moments(*seen, known=known)
    assert again.cross_yz.tobytes() == first.cross_yz.tobytes()
    assert set(ran) == {"r1"}


def test_outputs_that_take_too_much_are_not_kept():
    known = KnownOutputs(max_bytes=100)
    places = (np.zeros(1, np.intp),)
    known.put("large", [[(places, np.zeros(12))]])
    known.put("small", [[(places, np.zeros(11))]])
    assert (known.get("large"), len(known.get("small"))) == (None, 1)


def test_rows_of_pairs_are_what_their_moments_sum_up(model, samples):
    (c2,) = (group for group in groups_of(model) if group.layer.key == "c2")
    seen = (model, model, [("c2", "r1")], c2.layer, c2.layer.spec, samples)
    moments, (patches, outputs) = pair_moments(*seen), pair_rows(*seen)
    assert len(patches) == len(outputs) == moments.n_patches
    cross = np.einsum("no,ngd->god", outputs, patches)[0] / len(patches)
    np.testing.assert_allclose(cross, moments.cross_yz, rtol=1e-4, atol=1e-5)
    assert pair_rows(*seen, max_bytes=1000) is None


def test_no_more_places_of_a_pair_are_read_than_asked_for(model, samples):
    (c2,) = (group for group in groups_of(model) if group.layer.key == "c2")
    patches, _ = pair_rows(model, model, [("c2", "r1")], c2.layer, c2.layer.spec, samples, max_places=100)
    assert abs(len(patches) - 100) < len(samples["x"])


@pytest.mark.parametrize(("max_mib", "largest"), [(1, 1), (2, 3), (64, 20)])
def test_tensors_of_one_batch_take_a_share_of_the_limit(model, samples, monkeypatch, max_mib, largest):
    batches = []
    real = activations.run
    monkeypatch.setattr(activations, "run", lambda s, feed: batches.append(len(feed["x"])) or real(s, feed))
    (c1,) = (group for group in groups_of(model) if group.layer.key == "c1")
    monkeypatch.setattr(activations, "ACTIVATION_SHARE", 64)
    gather_moments(model, [c1], samples, max_bytes=max_mib << 20)  # a sample of x takes 9 KiB
    assert (batches[0], max(batches)) == (1, largest)


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_only_the_seed_chooses_the_places(model, samples, monkeypatch, seed, same):
    look_at(50, monkeypatch)
    expected, actual = gather(model, samples), gather(model, samples, seed=seed)
    assert (actual["c1"].second.tobytes() == expected["c1"].second.tobytes()) == same


def test_as_many_places_are_drawn_as_stated(monkeypatch):
    layer = conv_layer((2, 2, 3, 3), (1, 80, 80))
    model = dense_model(layer, weight_of(layer), None)
    moments = gather(model, {"x": normal(8, 2, 80, 80)})["y"]
    assert abs(moments.n_patches - activations.MIN_ROWS) < 8 < 8 * 78 * 78 - activations.MIN_ROWS


@pytest.mark.parametrize(
    ("size", "n_wanted"), [(1, 32_768), (576, 32_768), (1152, 36_864), (2304, 37_676), (4608, 24_000)]
)
def test_larger_patches_are_looked_at_as_often_as_their_moment_is_worth(size, n_wanted):
    assert activations.n_wanted_of(size) == n_wanted


def test_drawn_places_estimate_all_of_them():
    layer = conv_layer((2, 2, 3, 3), (1, 80, 80), pads=(1, 1, 1, 1))
    data = normal(8, 2, 80, 80) + np.linspace(0, 4, 80, dtype=np.float32)
    moments = gather(dense_model(layer, weight_of(layer)), {"x": data})["y"]
    patches = naive_patches(layer, data)
    assert moments.n_patches < len(patches) / 1.5
    np.testing.assert_allclose(moments.mean, patches.mean(axis=0), rtol=0.1)


def count_passes(monkeypatch) -> list[list[str]]:
    passes = []
    real = activations.open_outputs

    def counting(model, names, **options):
        passes.append(list(names))
        return real(model, names, **options)

    monkeypatch.setattr(activations, "open_outputs", counting)
    return passes


FIVE = """
g (float[N, 6] x) => (float[N, 6] y) {
    a = MatMul(x, w0)
    b = MatMul(a, w1)
    c = MatMul(b, w2)
    d = MatMul(c, w3)
    y = MatMul(d, w4)
}
"""
SUM_BYTES = 8 * 6 * 6
"""What the sums of each layer of `FIVE` take."""


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (2 * SUM_BYTES - 1, []),
        (2 * SUM_BYTES, [["x", "a"], ["b", "c"], ["d"]]),
        (5 * SUM_BYTES - 1, [["x", "a", "b", "c"], ["d"]]),
        (5 * SUM_BYTES, [["x", "a", "b", "c", "d"]]),
    ],
)
def test_sums_of_one_pass_stay_below_the_limit(max_bytes, expected, monkeypatch):
    model = parse(FIVE, {f"w{i}": normal(6, 6, seed=i) / 3 for i in range(5)})
    data = {"x": normal(50, 6)}
    at_once = gather(model, data)
    passes = count_passes(monkeypatch)
    moments = gather(model, data, max_bytes=max_bytes)
    assert passes == expected
    assert_same_moments(moments, at_once if expected else {}, **CLOSE)


def test_a_layer_whose_sums_are_too_large_gets_no_moments(model, samples, all_moments):
    moments = gather(model, samples, max_bytes=2 * 8 * 288**2 - 1)
    assert_same_moments(moments, {k: m for k, m in all_moments.items() if k != "c2"}, **CLOSE)


WIDE = f"""
g (float[N, {MAX_ROOT + 1}] x) => (float[N, 4] y) {{
    y = MatMul(x, w)
}}
"""

BEHIND_WIDE = f"""
g (float[N, {MAX_ROOT + 1}] x) => (float[N, 4] y) {{
    a = MatMul(x, w)
    y = MatMul(a, v)
}}
"""


def test_few_rows_of_a_wide_matrix_leave_room_for_the_sums_of_others(monkeypatch):
    model = parse(BEHIND_WIDE, {"w": normal(MAX_ROOT + 1, 4), "v": normal(4, 4)})
    data = {"x": normal(50, MAX_ROOT + 1)}
    all_rows = 8 * (MAX_ROOT + 1) * len(data["x"])
    passes = count_passes(monkeypatch)
    gather(model, data, max_bytes=2 * all_rows)
    assert passes == [["x", "a"]]


def test_of_a_wide_matrix_rows_are_kept_instead_of_sums(monkeypatch):
    model, data = parse(WIDE, {"w": normal(MAX_ROOT + 1, 4)}), normal(50, MAX_ROOT + 1)
    (moments,) = gather(model, {"x": data}, jobs=2).values()
    assert (moments.n_patches, moments.second.shape) == (50, (1, MAX_ROOT + 1, MAX_ROOT + 1))
    left = normal(1, 3, MAX_ROOT + 1)
    np.testing.assert_allclose(left @ moments.second, left @ data.T @ data / 50, **CLOSE)
    ((_, whole),) = stream_moments(model, groups_of(model), {"x": data}, thin=False)
    assert isinstance(whole.second, np.ndarray)
    np.testing.assert_allclose(left @ whole.second, left @ moments.second, **CLOSE)
    monkeypatch.setattr(activations, "MAX_THIN_ROWS", 20)
    (moments,) = gather(model, {"x": data}).values()
    assert 15 <= moments.n_patches <= 25


def test_a_wide_matrix_that_meets_infinite_values_has_no_moments():
    data = normal(50, MAX_ROOT + 1)
    data[3, 7] = np.inf
    assert gather(parse(WIDE, {"w": normal(MAX_ROOT + 1, 4)}), {"x": data}) == {}


def test_layers_are_handed_out_one_by_one(model, samples):
    first, _ = next(stream_moments(model, groups_of(model), samples))
    assert first == "c1"


def test_no_groups_need_no_run(model):
    assert gather_moments(model, [], {"x": normal(1, 16, 12, 12)}) == {}


def test_external_data_is_found_from_the_path(path, samples, all_moments):
    moments = gather_moments(path, find_layers(load(path)).groups, samples)
    assert_same_moments(moments, all_moments, rtol=1e-6, atol=1e-7)


def test_the_model_is_not_modified(model, samples):
    before = model.SerializeToString()
    gather(model, samples)
    assert model.SerializeToString() == before


def test_samples_that_do_not_run_are_an_error_of_the_model(model):
    with pytest.raises(ModelError, match="onnxruntime cannot run"):
        gather(model, {"x": normal(2, 3, 12, 12)})


def behind_relu(layer: Layer, weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """Return a model ``x -> Relu -> z -> layer -> y`` of any batch."""
    model = dense_model(layer, weight, bias)
    model.graph.node[0].input[0] = "z"
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["x"], ["z"]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def solve(pair: PairMoments) -> tuple[np.ndarray, np.ndarray]:
    """Return the last step's rows ``(O, D)`` and bias ``(O,)`` that fit the moments best."""
    groups = len(pair.mean_z)
    cross = pair.cross_yz.reshape(groups, -1, pair.cross_yz.shape[1])  # (G, O/G, D)
    mean_y = pair.mean_y.reshape(groups, -1)
    centred = pair.second_zz - pair.mean_z[:, :, None] * pair.mean_z[:, None, :]
    wanted = cross - mean_y[:, :, None] * pair.mean_z[:, None, :]
    rows = np.linalg.solve(centred, wanted.swapaxes(1, 2)).swapaxes(1, 2)  # (G, O/G, D)
    bias = mean_y - np.einsum("god,gd->go", rows, pair.mean_z)
    return rows.reshape(pair.cross_yz.shape), bias.ravel()


STEPS = {
    "1x1": ((5, 3, 1, 1), {}),
    "row with stride and pads": ((5, 3, 1, 3), {"strides": (1, 2), "pads": (0, 2, 0, 1)}),
    "groups": ((6, 2, 3, 1), {"group": 3, "pads": (1, 0, 1, 0)}),
    "depthwise": ((4, 1, 3, 3), {"group": 4, "strides": (2, 1)}),
    "same": ((4, 3, 1, 4), {"auto_pad": "SAME_UPPER", "strides": (1, 2)}),
    "transposed": ((4, 3, 3, 1), {"strides": (2, 1), "output_padding": (1, 0)}),
    "1-D": ((4, 3, 5), {"dilations": (2,)}),
}


@pytest.mark.parametrize(("weight_shape", "options"), STEPS.values(), ids=STEPS)
def test_a_last_step_and_its_bias_are_recovered(weight_shape, options):
    spatial = (9, 8, 7)[: len(weight_shape) - 2]
    layer = conv_layer(weight_shape, (2, *spatial), **options)
    weight, bias = weight_of(layer), normal(layer.out_channels).astype(np.float64)
    original = behind_relu(layer, weight, bias)
    rewritten = behind_relu(layer, weight_of(layer, 5), np.zeros(layer.out_channels))
    data = {"x": normal(20, layer.in_channels, *spatial)}
    pair = pair_moments(original, rewritten, [("y", "z")], layer, layer.spec, data)
    rows, found = solve(pair)
    np.testing.assert_allclose(rows, weight.reshape(rows.shape), atol=1e-4)
    np.testing.assert_allclose(found, bias, atol=1e-4)
    (output,) = run(original, data)
    np.testing.assert_allclose(
        pair.energy_y, np.square(output, dtype=np.float64).mean(axis=(0, *range(2, output.ndim))), **CLOSE
    )


def factored(op: str, weight: np.ndarray, *, on_left: bool = False, trans_a: bool = False) -> onnx.ModelProto:
    """Return a model of one matrix layer ``y`` with a weight ``(O, I)``."""
    if op == "Gemm":
        text = f"g (float[A, B] x) => (float[C, D] y) {{ y = Gemm <transA = {int(trans_a)}> (x, w) }}"
        return parse(text, {"w": weight.T.astype(np.float32)})
    product = "MatMul(w, x)" if on_left else "MatMul(x, w)"
    stored = weight if on_left else weight.T
    text = f"g (float[N, A, B] x) => (float[N, C, D] y) {{ y = {product} }}"
    return parse(text, {"w": stored.astype(np.float32)})


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"op": "Gemm"}, (40, 6)),
        ({"op": "Gemm", "trans_a": True}, (6, 40)),
        ({"op": "MatMul"}, (10, 7, 6)),
        ({"op": "MatMul", "on_left": True}, (10, 6, 7)),
    ],
    ids=str,
)
def test_a_last_factor_of_a_matrix_is_recovered(options, shape):
    first, last = normal(3, 6).astype(np.float64), normal(5, 3).astype(np.float64)
    original = factored(weight=last @ first, **options)
    specs = StepSpec(first.shape, Geometry()), StepSpec(last.shape, Geometry())
    rewritten = rewrite(original, lambda g: Chain(g.layer, "svd", (3,), specs, (first, np.zeros_like(last))))
    (group,) = groups_of(original)
    z = rewritten.graph.node[-1].input[int(group.layer.weight_on_left)]
    pair = pair_moments(original, rewritten, [("y", z)], group.layer, specs[1], {"x": normal(*shape)})
    rows, bias = solve(pair)
    np.testing.assert_allclose(rows, last, atol=1e-4)
    np.testing.assert_allclose(bias, np.zeros(5), atol=1e-4)


def test_pairs_of_all_sites_that_share_a_weight_are_summed():
    model = parse(SHARED, {"w": normal(4, 4)})
    (group,) = groups_of(model)
    data = {"a": normal(8, 4), "b": normal(8, 4, seed=1)}
    pair = pair_moments(model, model, [("p", "a"), ("r", "q")], group.layer, group.layer.spec, data)
    (moments,) = gather(model, data).values()
    assert pair.n_patches == 16
    np.testing.assert_allclose(pair.second_zz, moments.second, **CLOSE)
    np.testing.assert_allclose(pair.cross_yz, group.weight() @ moments.second[0], **CLOSE)


def test_pair_moments_draw_the_same_places_in_both_models(model, samples, monkeypatch):
    look_at(200, monkeypatch)
    (c2,) = (group for group in groups_of(model) if group.layer.key == "c2")
    pair = pair_moments(model, model, [("c2", "r1")], c2.layer, c2.layer.spec, samples)
    assert 190 < pair.n_patches < 210
    weight = c2.weight().reshape(32, 288).astype(np.float64)
    bias = onnx.numpy_helper.to_array(model.graph.initializer[6])
    mean = weight @ pair.mean_z[0] + bias
    np.testing.assert_allclose(pair.mean_y, mean, **CLOSE)
    np.testing.assert_allclose(
        pair.cross_yz, weight @ pair.second_zz[0] + bias[:, None] * pair.mean_z, **CLOSE
    )


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_pair_moments_that_take_too_much_memory_are_not_summed(model, samples, spare, fits):
    (c2,) = (group for group in groups_of(model) if group.layer.key == "c2")
    limit = 2 * 8 * 288 * (288 + 32) + spare
    pair = pair_moments(model, model, [("c2", "r1")], c2.layer, c2.layer.spec, samples, max_bytes=limit)
    assert (pair is not None) == fits


def test_a_rewritten_model_in_memory_reads_external_data_beside_the_original(path, samples):
    found = load(path)
    (c2,) = (group for group in find_layers(found).groups if group.layer.key == "c2")
    rewritten = rewrite(found, three_steps, select=lambda group: group.layer.key == "c2")
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in rewritten.graph.initializer)
    (last,) = (node for node in rewritten.graph.node if "c2" in node.output)
    step = three_steps(c2).specs[-1]
    pair = pair_moments(path, rewritten, [("c2", last.input[0])], c2.layer, step, samples)
    bias = load(path).array(found.proto.graph.initializer[6])
    # the last step is the identity, so that y = z + b
    np.testing.assert_allclose(pair.cross_yz, pair.second_zz[0] + bias[:, None] * pair.mean_z, **CLOSE)
