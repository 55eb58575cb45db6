"""Ranks on the machine's staircase: multiples of the channel block.

The runtime works on blocks of channels (16 with AVX-512, 8 with AVX2) and leaves its blocked path when a
channel count is not a multiple of 4. Inside a step a higher rank is free accuracy.
"""

MINIMUM_BLOCK = 4


def snap_down(rank: int, block: int) -> int:
    """Return the largest aligned rank that is not above `rank`; ranks below 4 stay.

    >>> [snap_down(r, 16) for r in (205, 16, 15, 3)]
    [192, 16, 12, 3]
    """
    for step in (block, MINIMUM_BLOCK):
        if rank >= step:
            return rank - rank % step
    return rank


def snap_up(rank: int, bound: int, block: int) -> int:
    """Return the smallest aligned rank that is not below `rank`, at most `bound`.

    >>> [snap_up(r, 64, 16) for r in (1, 5, 17, 63)]
    [4, 8, 32, 64]
    """
    step = block if rank > block // 2 else MINIMUM_BLOCK
    return min(bound, -(-rank // step) * step)
