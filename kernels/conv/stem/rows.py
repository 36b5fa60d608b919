"""How a stem's window lies in memory, and which block sizes serve it.

A row of the window is KW*C elements of a row of x.  It is read, padded to SPAN elements, from LEAD
elements before its first on, so that what every pixel reads starts at a multiple of VEC elements.
"""

from typing import Any

import triton

from ..._launch import INTERPRETED_BLOCK
from ..general.tiles import Tile
from ..problem import Problem

MOST_CHANNELS = 4
MOST_ROWS = 31  # of a window: one bit each, and no sign
MOST_SPAN = 64  # elements
LEAST_BLOCK = 16  # elements of a matrix instruction

# By element size in bytes, widest n first.  Each entry compiles without spills for sm_80 and newer
# within 99 KiB of shared memory.
TILES = {
    2: (
        Tile(128, 64, 32, 8, 1),
        Tile(256, 64, 32, 8, 1),
        Tile(128, 32, 32, 4, 1),
    ),
    4: (
        Tile(64, 64, 16, 4, 1),
        Tile(64, 32, 16, 4, 1),
    ),
    8: (Tile(32, 32, 16, 4, 1),),
}
WGRAD_TILES = {
    2: (
        Tile(64, 128, 32, 4, 1),
        Tile(64, 256, 32, 8, 1),
        Tile(32, 64, 32, 4, 1),
    ),
    4: (
        Tile(64, 64, 32, 8, 1),
        Tile(32, 64, 32, 4, 1),
    ),
    8: (Tile(32, 64, 16, 4, 1),),
}


def declines(p: Problem) -> str | None:
    if p.geometry.groups > 1 or p.x[1] > MOST_CHANNELS:
        return f"it takes at most {MOST_CHANNELS} channels, in one group"
    if p.geometry.dilation[1] > 1 and p.w[3] > 1:
        return "it takes windows whose rows are not dilated"
    if p.w[2] > MOST_ROWS or p.w[3] * p.x[1] > MOST_SPAN:
        return f"it takes windows of at most {MOST_ROWS} rows of {MOST_SPAN} elements"
    return None


def span(p: Problem) -> tuple[int, int, int]:
    """LEAD, VEC and SPAN: where possible VEC such that no copy holds elements beside the window."""
    C, KW, PW, SW = p.x[1], p.w[3], p.geometry.before[1], p.geometry.stride[1]
    least = triton.next_power_of_2(KW * C)
    vecs = [v for v in (8, 4, 2) if SW * C % v == 0 and p.x[3] * C % v == 0]
    for vec in vecs:
        if PW * C % vec == 0 and KW * C % vec == 0:
            return 0, vec, least
    for vec in vecs:
        lead = -PW * C % vec
        if triton.next_power_of_2(lead + KW * C) == least:
            return lead, vec, least
    return 0, 1, least


def serving(p: Problem) -> tuple[Tile, ...]:
    """The widest of output channels that is no wider than the problem comes first."""
    CO, pixels = p.w[0], p.y[0] * p.y[2] * p.y[3]
    wgrad = p.work == "wgrad"
    if p.capability is None:
        n, k = min(triton.next_power_of_2(CO), 64), 256
        m = min(triton.next_power_of_2(pixels), INTERPRETED_BLOCK // k)
        return (Tile(n, k, m, 1, 1) if wgrad else Tile(m, n, k, 1, 1),)
    tiles = (WGRAD_TILES if wgrad else TILES)[p.dtype.itemsize]
    guess = next((t for t in tiles if (t.m if wgrad else t.n) <= CO), tiles[-1])
    return guess, *(t for t in tiles if t != guess)


def constants(p: Problem, elements: int, tile: Tile) -> dict[str, Any]:
    """Those of the kernels of both passes, which take about `elements` of the window at once."""
    (CO, C, KH, KW), g = p.w, p.geometry
    (SH, SW), (PH, PW), (DH, _) = g.stride, g.before, g.dilation
    lead, vec, row = span(p)
    rows = min(max(elements // row, 1), triton.next_power_of_2(KH))
    rows = max(rows, LEAST_BLOCK // row)
    return {
        **{"C": C, "CO": CO, "KH": KH, "KW": KW, "SH": SH, "SW": SW, "PH": PH, "PW": PW, "DH": DH},
        **{"LEAD": lead, "VEC": vec, "SPAN": row, "ROWS": rows},
        **p.numbers,
        **{"STAGES": tile.stages, "num_warps": tile.warps},
    }
