"""Training sees every sample but those set aside, in an order that the seed alone decides."""

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import onnx
import pytest

from onnxdecomp.errors import TooFewSamplesError, UsageError
from onnxdecomp.tune.batches import HELD_OUT_BATCHES, Batch, open_source
from onnxdecomp.tune.settings import Settings
from tests.graph.models import parse
from tests.tune.cut import samples, teacher

N = 40


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "x.npz", **samples(N))
    return str(tmp_path / "x.npz")


@pytest.fixture
def module(monkeypatch) -> ModuleType:
    made = ModuleType("loaders")
    monkeypatch.setitem(sys.modules, "loaders", made)
    return made


def numbered(epoch: int, n_batches: int = 12, size: int = 4) -> Iterator[dict]:
    """Yield batches whose entries say which epoch and which batch they are of."""
    for number in range(n_batches):
        yield {"x": np.full((size, 16), 100 * epoch + number, np.float32)}


def rows(batches) -> list[int]:
    return [int(row) for batch in batches for row in batch.rows]


def source(calibration: str, model: onnx.ModelProto | None = None, *, labels: bool = False, **options):
    return open_source(Settings(calibration=calibration, **options), model or teacher(), labels=labels)


def test_no_sample_that_is_set_aside_is_trained_on(data: str) -> None:
    found = source(data, batch=8)
    apart, trained = rows(found.held_out), rows(found.epoch(0))
    assert sorted(apart + trained) == list(range(N))
    assert len(apart) == N // 8


def test_epochs_differ_and_the_same_number_gives_the_same(data: str) -> None:
    found = source(data, batch=8)
    assert rows(found.epoch(0)) != rows(found.epoch(1))
    assert rows(found.epoch(1)) == rows(source(data, batch=8).epoch(1))


def test_labels_stay_with_their_samples(data: str) -> None:
    truth = samples(N)["labels"]
    batch = next(source(data, labels=True).epoch(3))
    assert np.array_equal(batch.labels, truth[batch.rows])
    assert np.array_equal(batch.feeds["x"], samples(N)["x"][batch.rows])


def test_a_fixed_batch_is_kept_to(data: str) -> None:
    model = parse("g (float[8,16] x) => (float[8,16] y) { y = Relu(x) }")
    found = source(data, model, batch=3)
    sizes = {batch.n_samples for batch in (*found.held_out, *found.epoch(0))}
    assert sizes == {8}


def test_samples_of_their_own_to_stop_by_leave_all_others_for_training(data: str) -> None:
    found = source(data, held_out=data, batch=8)
    assert sum(batch.n_samples for batch in found.held_out) == N
    assert sorted(rows(found.epoch(0))) == list(range(N))


def test_a_function_is_called_anew_for_each_epoch_with_its_number(module: ModuleType) -> None:
    module.yields = numbered
    found = source("loaders:yields")
    firsts = [int(batch.feeds["x"][0, 0]) for batch in found.epoch(2)]
    assert firsts == list(range(200 + HELD_OUT_BATCHES, 212))
    assert [int(batch.feeds["x"][0, 0]) for batch in found.held_out] == list(range(HELD_OUT_BATCHES))


def test_a_function_may_return_a_dictionary_as_ever(module: ModuleType) -> None:
    module.returns = lambda: samples(N)
    assert source("loaders:returns").stored is not None


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: iter([np.zeros(3)]), UsageError, "yielded ndarray, not a dictionary"),
        (lambda: 3, UsageError, "returned int"),
        (lambda: iter([{"z": np.zeros((1, 16), np.float32)}]), UsageError, "did you mean|unknown input"),
        (lambda: iter([{"x": np.zeros((1, 5), np.float32)}]), UsageError, "has shape"),
        (lambda: numbered(0, n_batches=3), TooFewSamplesError, "yields 3 batches"),
        (lambda: ({"x": 1 / 0} for _ in range(1)), UsageError, "ZeroDivisionError"),
    ],
)
def test_what_a_function_yields_is_checked(module: ModuleType, function, error, message: str) -> None:
    module.bad = function
    with pytest.raises(error, match=message):
        source("loaders:bad")


@pytest.mark.parametrize("n", [1, 7])
def test_too_few_samples_are_refused(tmp_path, n: int) -> None:
    np.savez(tmp_path / "few.npz", x=samples(n)["x"])
    with pytest.raises(TooFewSamplesError, match=f"there are {n} samples, and 8 are needed"):
        source(str(tmp_path / "few.npz"))


def test_without_samples_nothing_trains() -> None:
    with pytest.raises(UsageError, match="--calibration"):
        open_source(Settings(), teacher(), labels=False)


def test_a_batch_counts_its_samples() -> None:
    assert Batch({"x": np.zeros((3, 2))}).n_samples == 3
