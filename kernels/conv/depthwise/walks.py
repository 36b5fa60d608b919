"""Which block sizes serve a walk down columns.

A thread owns a few channels of `columns` neighbouring columns; in each step it completes `rows` of
their rows.  The more columns, the more sums share a value, and the more registers they take.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton

from ... import _split
from ..._launch import INTERPRETED_BLOCK
from ..grouped.bundles import declines as grouped_declines
from ..problem import Problem

# as geometry's, less those that are constants
SIZES = ("N", "H", "W", "OH", "OW", "bands", "strips", "strip_rows", "steps")

WARPS = 4
PROGRAMS = 8192  # eight times what a GPU holds of them: the last round is then a small part
# That an H100 holds at once of wgrad's programs, for sums of up to so many products: each walks
# as much as any other, and all are to end together.
RESIDENT = {9: 660, 25: 528, 49: 528, 64: 264}
MOST_IDLE = 8  # of a block's channels, one in so many may be beyond the last
MATRIX = 8  # channels of a group: as many multiply as long without the matrix unit
MOST_REACH = 8  # from a window's first row or column to its last
MOST_STRIDE = 4


class Walk(NamedTuple):
    rows: int
    columns: int
    p: int  # bands of columns
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


# By element size in bytes; for sums of up to so many products.
SHARES = {
    2: {
        9: (Share(2, 4, 2), Share(2, 7, 2), Share(4, 4, 2)),
        25: (Share(2, 4, 1), Share(2, 7, 1), Share(2, 2, 2)),
        49: (Share(1, 4, 1), Share(2, 7, 1)),
        64: (Share(1, 2, 1),),
    },
    4: {
        9: (Share(2, 4, 2), Share(2, 4, 1)),
        25: (Share(2, 4, 1),),
        49: (Share(1, 4, 1),),
        64: (Share(1, 2, 1),),
    },
    8: {
        9: (Share(2, 4, 1), Share(2, 2, 1)),
        25: (Share(1, 2, 1),),
        49: (Share(1, 2, 1),),
    },
}


def inputs(p: Problem) -> int:
    """Channels that a sum runs over."""
    return p.channels[1] if p.work == "dgrad" else p.channels[0]


def declines(p: Problem) -> str | None:
    (KH, KW), g = p.w[2:], p.geometry
    if g.groups == 1 and p.channels != (1, 1):
        return "it takes several groups"
    most = max(SHARES[p.dtype.itemsize])
    if KH * KW * inputs(p) > most:
        return f"it takes sums of at most {most} products in {p.dtype}"
    if max((KH - 1) * g.dilation[0], (KW - 1) * g.dilation[1]) > MOST_REACH:
        return f"it takes windows whose last tap is at most {MOST_REACH} pixels from the first"
    if max(g.stride) > MOST_STRIDE:
        return f"it takes strides of at most {MOST_STRIDE}"
    return None


def yields(p: Problem) -> bool:
    """To products on the matrix unit, of groups that are more than few channels, or whose rows can
    be copied 8 bytes at a time."""
    most = max(p.channels)
    few = most <= 2 or (most < MATRIX and any(c % 4 for c in p.channels))
    return not few and grouped_declines(p) is None


def of_window(table: dict[int, Any], p: Problem) -> Any:
    """What a table has for sums of so many products."""
    products = p.w[2] * p.w[3] * inputs(p)
    return table[min(most for most in table if most >= products)]


def block_of(channels: int) -> int:
    """The most channels, up to 64, of which few enough are idle."""
    blocks = (64, 32, 16, 8)
    fitting = (c for c in blocks if -channels % c * MOST_IDLE <= triton.cdiv(channels, c) * c)
    return min(next(fitting, 8), triton.next_power_of_2(channels))


def serving(p: Problem, result: Sequence[int]) -> tuple[Walk, ...]:
    N, C, _, OW = result
    found = []
    depthwise = p.channels == (1, 1)
    for share in of_window(SHARES[p.dtype.itemsize], p):
        if share.columns > 4 and not depthwise:
            continue  # for all that is unrolled, compiling takes half a minute
        rows, columns = share.rows, share.columns
        if p.work == "dgrad":
            SH, SW = p.geometry.stride
            rows, columns = triton.cdiv(rows, SH) * SH, triton.cdiv(columns, SW) * SW
        if p.capability is None:
            c = min(triton.next_power_of_2(C), 256)
            bands = triton.next_power_of_2(N * triton.cdiv(OW, columns))
            found.append(Walk(rows, columns, min(bands, INTERPRETED_BLOCK // c), c, 1))
        else:
            c = block_of(C)
            # of groups of several, what a thread reads does not lie side by side
            block = 32 * WARPS * (share.channels if depthwise else 1)
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
