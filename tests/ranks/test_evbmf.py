import numpy as np
import pytest

from onnxdecomp.methods.base import Spectrum
from onnxdecomp.ranks.evbmf import evbmf_rank


def spectrum(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return Spectrum(matrix.shape, values, float(np.sum(values**2)))


def planted(shape, rank, noise, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) / np.sqrt(rank)
    return signal + noise * rng.standard_normal(shape)


@pytest.mark.parametrize("shape", [(200, 600), (600, 200), (300, 300)])
@pytest.mark.parametrize("rank", [5, 20, 60])
def test_a_planted_rank_is_found_whichever_way_the_matrix_lies(shape, rank):
    assert evbmf_rank(spectrum(planted(shape, rank, noise=0.1))) == rank


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_rank_does_not_depend_on_the_scale(scale):
    assert evbmf_rank(spectrum(scale * planted((100, 300), 10, noise=0.1))) == 10


def test_pure_noise_has_rank_zero():
    assert evbmf_rank(spectrum(np.random.default_rng(1).standard_normal((150, 400)))) == 0


@pytest.mark.parametrize("matrix", [np.zeros((5, 9)), np.ones((1, 7))])
def test_a_degenerate_matrix_has_rank_zero(matrix):
    assert evbmf_rank(spectrum(matrix)) == 0
