"""Which block sizes serve a depthwise convolution.

A strip is `rows` rows of p columns by c channels, which a thread block holds in registers: the more
rows, the more outputs share what is loaded, and the fewer thread blocks fit beside each other.
"""

from typing import NamedTuple

import triton

from ..._launch import INTERPRETED_BLOCK
from ..problem import Problem

ELEMENTS = {2: 1024, 4: 1024, 8: 512}  # of a strip's row, by their size: 8 or 4 for each thread
MOST_CHANNELS = 64
MOST_TAPS = 7  # down a column of the window whose products are unrolled together
MOST_STRIDE = 4  # so that a strip holds some rows of each residue class


# as geometry's, less those that are constants
SIZES = ("N", "H", "W", "OH", "OW", "KH", "KW", "SW", "PW", "DW", "strips")


class Strip(NamedTuple):
    rows: int
    p: int
    c: int
    warps: int

    @property
    def constants(self) -> dict[str, int]:
        return {
            "ROWS": self.rows,
            "BLOCK_P": self.p,
            "BLOCK_C": self.c,
            "num_warps": self.warps,
        }


def declines(p: Problem) -> str | None:
    if p.channels != (1, 1):
        return "it takes one channel a group, in and out"
    if p.work == "dgrad" and p.w[2] > MOST_TAPS and p.geometry.stride[0] > 1:
        return f"it takes at most {MOST_TAPS} rows of taps at a stride"
    if max(p.geometry.stride) > MOST_STRIDE:
        return f"it takes strides of at most {MOST_STRIDE}"
    return None


def heights(p: Problem) -> tuple[int, ...]:
    """Of strips that fit into registers, beside the window's taps."""
    if p.w[2] > 5:
        return (7, 4) if p.dtype.itemsize < 8 else (4,)
    # for sm_80, ptxas makes do with 168 registers for 7 rows of 3 taps, and spills
    return (8, 4) if p.capability is not None and p.capability[0] == 8 else (8, 7, 4)


def serving(p: Problem, heights: tuple[int, ...], height: int, pixels: int) -> tuple[Strip, ...]:
    """Strips of heights for images of `height` rows; first those that cover it with least waste.

    But first of all those of 4 rows, which an H200 took least time with where a window's rows are
    few: with more, fewer run beside each other.  pixels: how many columns strips have in all
    images, if they were one row high.
    """
    channels = triton.next_power_of_2(p.x[1])
    if p.capability is None:
        rows = min(heights)
        block_c = min(channels, 256)
        columns = triton.next_power_of_2(triton.cdiv(pixels, rows))
        return (Strip(rows, min(columns, INTERPRETED_BLOCK // block_c), block_c, 1),)
    block_c = min(channels, MOST_CHANNELS)
    strips = [Strip(rows, ELEMENTS[p.dtype.itemsize] // block_c, block_c, 4) for rows in heights]
    few = p.w[2] <= 5 if p.work == "wgrad" else p.w[2] <= 3 and p.geometry.stride == (1, 1)

    def cost(s: Strip) -> tuple[bool, int, int]:
        return few and s.rows != 4, triton.cdiv(height, s.rows) * s.rows, -s.rows

    return tuple(sorted(strips, key=cost))
