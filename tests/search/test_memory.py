"""What is known of models: by what chains follow from, so that no chain is made to look something up."""

import numpy as np
import onnx
import pytest

from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import decompose
from onnxdecomp.runtime.cache import Cache
from onnxdecomp.search import memory as memory_module
from onnxdecomp.search import recover as recover_module
from onnxdecomp.search.memory import Memory, contents
from onnxdecomp.search.recover import STEPS, recover
from onnxdecomp.search.replacement import Replacement
from tests.networks import network

OUTPUTS = {"z": np.arange(6, dtype=np.float32).reshape(3, 2), "a": np.arange(3)}


@pytest.fixture
def model(tmp_path):
    onnx.save(network(), tmp_path / "in.onnx")
    return load(tmp_path / "in.onnx")


@pytest.fixture
def group(model):
    return find_layers(model).groups[1]


@pytest.fixture
def opened(tmp_path, model):
    """Return a memory in the same folder each time."""

    def use(*samples):
        return Memory(Cache(tmp_path / "cache"), model, samples, {"seed": 0})

    return use


def never():
    raise AssertionError("made although it is known, or although nobody asks")


def chain(group, rank):
    (method,) = find_methods("tucker2")
    analysis = method.analyze(group.layer, group.weight(), np.random.default_rng(0))
    return decompose(method, analysis, group.layer, (rank, rank))


def test_a_number_is_looked_up_without_making_the_chain(opened, group):
    for memory, make in ((opened(), lambda: {"drop": 0.5}), (opened(), never)):
        later = Replacement.later(group, "tucker2 8", never)
        assert memory.number("kind", {"k": later}, make) == {"drop": 0.5}


@pytest.mark.parametrize("as_path", [False, True], ids=["in memory", "as a file"])
def test_a_model_made_elsewhere_is_known_by_its_contents(opened, model, as_path):
    opened().number_of_model("kind", model.proto, lambda: {"drop": 0.5})
    same = model.path if as_path else onnx.load(model.path)
    assert opened().number_of_model("kind", same, never) == {"drop": 0.5}
    other = onnx.load(model.path)
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[::-1]
    assert opened().number_of_model("kind", other, lambda: {"drop": 0.7}) == {"drop": 0.7}


def test_a_model_with_weights_in_files_of_their_own_is_measured_anew(opened, model, tmp_path):
    path = tmp_path / "apart.onnx"
    onnx.save(model.proto, path, save_as_external_data=True, size_threshold=0)
    made = []
    for _ in range(2):
        opened().number_of_model("kind", path, lambda: made.append(0) or {"drop": 0.5})
    assert len(made) == 2


def test_what_a_function_of_the_user_computes_is_not_kept(opened, model):
    made = []
    for _ in range(2):
        opened().number_of_model("drop-mine:metric", model.proto, lambda: made.append(0) or {"drop": 0.5})
    assert len(made) == 2


@pytest.mark.parametrize("other", ["tucker2 16", ""], ids=["another name", "no name"])
def test_what_follows_from_something_else_is_something_else(group, other):
    made = chain(group, 8), None
    known = contents({"k": Replacement.later(group, "tucker2 8", lambda: made)})
    assert known == contents({"k": Replacement.later(group, "tucker2 8", never)})
    assert known != contents({"k": Replacement.later(group, other, lambda: made)})
    assert known != contents({"l": Replacement.later(group, "tucker2 8", never)})


def test_without_a_name_the_numbers_tell(group):
    one, same, other = (Replacement(group, chain(group, rank)) for rank in (8, 8, 4))
    assert contents({"k": one}) == contents({"k": same})
    assert contents({"k": one}) != contents({"k": other})
    assert contents({"k": one}) != contents({"k": Replacement(group, one.chain, np.zeros(4))})


def test_a_chain_is_made_once(group):
    made = []
    later = Replacement.later(group, "tucker2 8", lambda: made.append(0) or (chain(group, 8), np.ones(3)))
    assert later.chain is later.chain
    assert later.bias.sum() == 3.0
    assert len(made) == 1


@pytest.mark.parametrize("step", STEPS)
def test_steps_are_recovered_together_when_one_is_asked_for(monkeypatch, group, step):
    calls, solved = [], Replacement(group, chain(group, 8), np.ones(3))

    def recovered(step, replaced, trials):
        calls.append(step)
        return dict.fromkeys(replaced, solved)

    monkeypatch.setattr(recover_module, "_recovered", recovered)
    before = {key: Replacement.later(group, f"tucker2 8 of {key}", never) for key in "kl"}
    after = recover(step, before, None)
    names = {one.identity for one in (*before.values(), *after.values())}
    assert (len(names), calls) == (4, [])
    assert after["l"].chain is after["k"].chain is solved.chain
    assert after["l"].bias is solved.bias
    assert calls == [step]


def test_outputs_of_the_original_are_kept_as_they_are(opened):
    opened().outputs("choose", lambda: OUTPUTS)
    found = opened().outputs("choose", never)
    assert list(found) == list(OUTPUTS)
    for name, array in OUTPUTS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize(
    "outputs",
    [OUTPUTS, {"s": np.array(["a", None], object)}, {"sequence": [1, 2]}],
    ids=["large", "objects", "no array"],
)
def test_outputs_that_are_large_or_no_numbers_are_made_anew(monkeypatch, opened, outputs):
    monkeypatch.setattr(memory_module, "MAX_KEPT_BYTES", 47)
    made = []
    for memory in (opened(), opened()):
        assert memory.outputs("choose", lambda: made.append(0) or outputs) is outputs
    assert len(made) == 2


def test_other_samples_and_other_code_know_nothing(monkeypatch, opened):
    samples = {"x": np.zeros(3)}
    opened(samples).put("kind", {"k": 1}, {"v": 2})
    assert opened(samples).get("kind", {"k": 1}) == {"v": 2}
    assert opened({"x": np.ones(3)}).get("kind", {"k": 1}) is None
    monkeypatch.setattr(memory_module, "_code", lambda: "another version")
    assert opened(samples).get("kind", {"k": 1}) is None
