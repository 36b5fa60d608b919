"""Which block sizes serve a convolution: coarse tables for GPUs, one policy for the interpreter.

A tile is m x n outputs and a reduction step of k.  Every tile of the tables compiles without spills
for sm_80 and newer within 99 KiB of shared memory, the least any of these devices has, except
those of HOPPER, which sm_90's 227 KiB allow.
"""

import functools
import itertools
from typing import NamedTuple

import triton
import triton.language as tl

from ..._common import unit
from ..._launch import INTERPRETED_BLOCK
from .. import epilogue
from ..problem import Problem


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        return {
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


# By element size in bytes, widest n first: the first tile no wider than the problem serves it.
TILES = {
    2: (
        Tile(128, 128, 32, 8, 4),
        Tile(128, 64, 32, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(128, 16, 64, 4, 3),
    ),
    4: (
        Tile(64, 64, 32, 4, 3),
        Tile(64, 32, 32, 4, 2),
        Tile(64, 16, 32, 4, 2),
    ),
    8: (
        Tile(32, 32, 16, 4, 3),
        Tile(32, 16, 16, 4, 2),
    ),
}
HOPPER = {
    2: (
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 4, 4),
        Tile(128, 32, 64, 4, 4),
        Tile(128, 16, 64, 4, 4),
    ),
}
# Of float32 outside the matrix unit: steps of 32 are unrolled into more values than registers.
EXACT = {
    4: (Tile(64, 64, 16, 8, 3), *TILES[4][1:]),
}
# For rows of memory that start at any element: what is loaded passes through registers.
UNALIGNED = {
    2: (
        Tile(64, 64, 16, 4, 2),
        Tile(64, 32, 32, 4, 2),
        Tile(64, 16, 16, 4, 2),
    ),
}
LEAST_ASYNCHRONOUS = 4  # bytes that one asynchronous copy takes
STEP = 2**17  # elements that cost the interpreter as much as a step's fixed part


def room(p: Problem, tile: Tile, form: str, tail: bool) -> dict[str, int]:
    """Constants by which the epilogue leaves room for two programs of 8 warps, where the loop does.

    It does not where it copies a few bytes at a time, masks a tail or keeps more than bits of taps.
    """
    aligned = all(unit(c) * p.dtype.itemsize >= 16 for c in p.channels)
    on_hopper = p.capability is None or p.capability[0] == 9
    leaves_two = aligned and not tail and form == "bits" and p.index == tl.int32
    if on_hopper and leaves_two and tile.warps == 8:
        return epilogue.room(tile, False)
    return {"PIECES": 1}


def serving(p: Problem, m: int, n: int, k: int, channels: int) -> tuple[Tile, ...]:
    """The tiles for m x n outputs, each a sum of k products; the best guess first.

    channels: how many elements the rows of the larger operand hold.
    """
    if p.capability is None:
        return (interpreted(m, n, k),)
    size = p.dtype.itemsize
    tiles = (TILES | EXACT if p.precision == "ieee" else TILES)[size]
    if unit(channels) * size < LEAST_ASYNCHRONOUS:
        tiles = UNALIGNED.get(size, tiles)
    elif p.capability[0] == 9:
        tiles = HOPPER.get(size, tiles)
    guess = next((t for t in tiles if t.n <= n), tiles[-1])
    return guess, *(t for t in tiles if t != guess)


@functools.cache
def interpreted(m: int, n: int, k: int) -> Tile:
    """The tile that costs the interpreter least: STEP elements a step, plus the step's elements."""
    tiles = (
        Tile(*blocks, warps=1, stages=1)
        for blocks in itertools.product(_powers(m), _powers(n), _powers(k))
        if max(_sides(*blocks)) <= INTERPRETED_BLOCK
    )
    return min(
        tiles,
        key=lambda t: triton.cdiv(m, t.m) * triton.cdiv(n, t.n) * triton.cdiv(k, t.k)
        * (STEP + sum(_sides(*t[:3]))),
    )  # fmt: skip


def _sides(m: int, n: int, k: int) -> tuple[int, int, int]:
    return m * n, m * k, n * k


def _powers(size: int) -> list[int]:
    return [2**i for i in range(triton.next_power_of_2(size).bit_length())]
