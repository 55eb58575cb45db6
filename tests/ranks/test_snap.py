import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.ranks.snap import snap_down, snap_up

RANKS = st.integers(1, 5000)
BLOCKS = st.sampled_from([4, 8, 16])


@given(RANKS, BLOCKS)
def test_snapping_down_never_raises_a_rank_and_is_stable(rank, block):
    snapped = snap_down(rank, block)
    assert 1 <= snapped <= rank
    assert snap_down(snapped, block) == snapped


@given(RANKS, BLOCKS)
def test_snapping_up_never_lowers_a_rank_and_stays_in_bounds(rank, block):
    bound = 2 * rank
    snapped = snap_up(rank, bound, block)
    assert rank <= snapped <= bound
    assert snap_up(snapped, bound, block) == snapped


@pytest.mark.parametrize(("rank", "block"), [(17, 16), (100, 8), (205, 16)])
def test_ranks_above_a_block_are_its_multiples(rank, block):
    assert snap_down(rank, block) % block == 0
    assert snap_up(rank, 10_000, block) % block == 0


def test_a_bound_that_is_not_aligned_can_still_be_reached():
    assert snap_up(99, 100, 16) == 100
