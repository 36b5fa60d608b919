"""Which block sizes serve a walk down columns.

A thread owns a few channels of `columns` neighbouring columns; in each step it completes `rows` of
their rows.  The more columns, the more sums share a value, and the more registers they take.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton

from ... import _split
from ..._launch import INTERPRETED_BLOCK
from ..problem import Problem

# as geometry's, less those that are constants
SIZES = ("N", "H", "W", "OH", "OW", "groups", "strips", "strip_rows", "steps")

WARPS = 4
PROGRAMS = 8192  # eight times what a GPU holds of them: the last round is then a small part
RESIDENT = 660  # five for each multiprocessor: a walk that reduces is all that its program does
MOST_IDLE = 8  # of a block's channels, one in so many may be beyond the last
MOST_TAPS = 49
MOST_REACH = 8  # from a window's first row or column to its last
MOST_STRIDE = 4


class Walk(NamedTuple):
    rows: int
    columns: int
    p: int  # groups of columns
    c: int
    warps: int

    @property
    def constants(self) -> dict[str, int]:
        return {
            **{"ROWS": self.rows, "COLUMNS": self.columns},
            **{"BLOCK_P": self.p, "BLOCK_C": self.c, "num_warps": self.warps},
        }


class Share(NamedTuple):
    """What a thread owns."""

    rows: int
    columns: int
    channels: int


# By element size in bytes; for windows of up to so many taps.
SHARES = {
    2: {
        9: (Share(2, 4, 2), Share(2, 7, 2), Share(4, 4, 2)),
        25: (Share(2, 4, 1), Share(2, 7, 1), Share(2, 2, 2)),
        49: (Share(1, 4, 1), Share(2, 7, 1)),
    },
    4: {
        9: (Share(2, 4, 2), Share(2, 4, 1)),
        25: (Share(2, 4, 1),),
        49: (Share(1, 4, 1),),
    },
    8: {
        9: (Share(2, 4, 1), Share(2, 2, 1)),
        25: (Share(1, 2, 1),),
        49: (Share(1, 2, 1),),
    },
}


def declines(p: Problem) -> str | None:
    (KH, KW), g = p.w[2:], p.geometry
    if p.channels != (1, 1):
        return "it takes one channel a group, in and out"
    if KH * KW > MOST_TAPS:
        return f"it takes at most {MOST_TAPS} taps"
    if max((KH - 1) * g.dilation[0], (KW - 1) * g.dilation[1]) > MOST_REACH:
        return f"it takes windows whose last tap is at most {MOST_REACH} pixels from the first"
    if max(g.stride) > MOST_STRIDE:
        return f"it takes strides of at most {MOST_STRIDE}"
    return None


def shares(p: Problem) -> tuple[Share, ...]:
    table = SHARES[p.dtype.itemsize]
    return table[min(taps for taps in table if taps >= p.w[2] * p.w[3])]


def block_of(channels: int) -> int:
    """The most channels, up to 64, of which few enough are idle."""
    blocks = (64, 32, 16, 8)
    fitting = (c for c in blocks if -channels % c * MOST_IDLE <= triton.cdiv(channels, c) * c)
    return min(next(fitting, 8), triton.next_power_of_2(channels))


def serving(p: Problem, result: Sequence[int]) -> tuple[Walk, ...]:
    N, C, _, OW = result
    found = []
    for share in shares(p):
        rows, columns = share.rows, share.columns
        if p.work == "dgrad":
            SH, SW = p.geometry.stride
            rows, columns = triton.cdiv(rows, SH) * SH, triton.cdiv(columns, SW) * SW
        if p.capability is None:
            c = min(triton.next_power_of_2(C), 256)
            groups = triton.next_power_of_2(N * triton.cdiv(OW, columns))
            found.append(Walk(rows, columns, min(groups, INTERPRETED_BLOCK // c), c, 1))
        else:
            c = block_of(C)
            block = 32 * WARPS * share.channels
            found.append(Walk(rows, columns, max(block // c, 1), c, WARPS))
    return tuple(dict.fromkeys(found))


def strips_of(p: Problem, walk: Walk, height: int, programs: int) -> tuple[int, int]:
    """How many strips make an image, and the rows of each.

    programs: what strips as high as the image take.
    """
    reach = max((p.w[2] - 1) * p.geometry.dilation[0], 1)  # rows that a strip reads beside its own
    strips = _split.splits(programs, height // reach, PROGRAMS)
    rows = triton.cdiv(triton.cdiv(height, strips), walk.rows) * walk.rows
    return triton.cdiv(height, rows), rows
