"""Which samples are fitted to, which decide, and which confirm."""

import numpy as np
import pytest

from onnxdecomp.config import Config
from onnxdecomp.search.parts import count, read_parts
from tests.networks import network

SIDE = 2
"""Height and width of the images: as small as they may be, since thousands are saved."""


@pytest.fixture
def saved(tmp_path):
    """Save so many images, each of its number, and return where."""

    def save(name: str, n: int) -> str:
        path = tmp_path / f"{name}.npz"
        np.savez(
            path, x=np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 16, SIDE, SIDE))
        )
        return str(path)

    return save


def parts_of(saved, n_calibration, n_evaluation=None):
    evaluation = None if n_evaluation is None else saved("evaluation", n_evaluation)
    config = Config(calibration=saved("calibration", n_calibration), evaluation=evaluation)
    return read_parts(config, network(size=SIDE))


@pytest.mark.parametrize(("n", "deciding"), [(40, 20), (1500, 750), (2400, 1000), (4500, 1500)])
def test_a_third_of_many_evaluation_samples_decides_and_half_of_few(saved, n, deciding):
    parts = parts_of(saved, 16, n)
    assert (count(parts.fit), count(parts.choose), count(parts.confirm)) == (16, deciding, n - deciding)


@pytest.mark.parametrize("n_evaluation", [None, 40])
def test_no_sample_is_in_two_parts(saved, n_evaluation):
    parts = parts_of(saved, 32, n_evaluation)
    numbers = [part["x"][:, 0, 0, 0] for part in (parts.choose, parts.confirm)]
    numbers += [] if n_evaluation else [parts.fit["x"][:, 0, 0, 0]]
    every = np.concatenate(numbers)
    assert sorted(every) == list(range(n_evaluation or 32))
